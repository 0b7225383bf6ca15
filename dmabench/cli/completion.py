"""What the shell offers for an argument, once `dmabench --install-completion` has told it to ask."""

from collections.abc import Iterator


def runs_here(incomplete: str) -> Iterator[str]:
    """Names of the runs under the usual folder, the newest first, and `latest`."""
    from dmabench.errors import Refusal
    from dmabench.store.runs import results_root, run_paths

    try:
        found = [path.name for path in reversed(run_paths(results_root(None, create=False)))]
    except Refusal:  # there is no such folder: nothing to offer
        found = []
    yield from (name for name in ["latest", *found] if name.startswith(incomplete))


def claims(incomplete: str) -> Iterator[tuple[str, str]]:
    """Ids of claims, with what each says."""
    from dmabench.claims.verdicts import load_claims

    yield from ((one.id, one.statement) for one in load_claims() if one.id.startswith(incomplete))
