"""The cells of a task: run, resumed, shared out among workers and machines."""
