"""Is the hub of Hugging Face there? Asked once, since its client tries for half a minute each time."""

import os
import ssl
import urllib.error
import urllib.request

ENDPOINT = "https://huggingface.co"


def answers(seconds: float = 5) -> bool:
    """Does the hub (HF_ENDPOINT where that is set) answer at all? Goes through the proxy that the environment names."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return False
    request = urllib.request.Request(os.environ.get("HF_ENDPOINT") or ENDPOINT, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=seconds).close()
    except urllib.error.HTTPError:
        return True  # an answer, if no kind one
    except urllib.error.URLError as error:
        return isinstance(error.reason, ssl.SSLError)  # somebody is there; the hub's client may trust them
    except OSError:
        return False
    return True


def go_offline() -> None:
    """Tells the libraries of Hugging Face to look into their caches alone. Before they are imported."""
    os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
