"""Which addresses are whose: the page's, its files, and, all else, the API's."""

OPEN = ("/static/", "/sw.js", "/offline", "/manifest.webmanifest")
"""The page's files: the same on every Sparrow."""
_PAGE = ("/c/", "/messages", "/answers/", "/conversations", "/export", "/import", "/preferences", "/drafts", "/plain/")
FORMS = "/plain/"
"""Posted by forms that hold a token; they look at their senders themselves, and give the words back that were typed."""
ACTING = ("/stream",)
"""What makes the model work when it is only opened."""


def is_page(path: str) -> bool:
    """Not the API's. A new address is the API's until it stands here: too well guarded rather than not."""
    return path in ("/", "/pair") or path.startswith((*_PAGE, *OPEN))
