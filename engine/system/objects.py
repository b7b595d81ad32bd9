"""Objects in a store: listed, read by ranges and written by obstore, with retries that are counted.

Credentials come from the provider's own chain, as obstore looks for it: environment variables, then the
identity of the machine. Nothing of them, and no address with a query, may reach a message: errors are told
by their status and code alone, never in the words of the server or the client.
"""

import logging
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar
from urllib.parse import unquote

from ..errors import MissingExtra, Refused, how_to_install
from ..text import escaped

log = logging.getLogger(__name__)

T = TypeVar("T")
FaultKind = Literal["missing", "denied", "changed", "down"]

DELAYS_S = (0.1, 0.2, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0)  # before a request is repeated; each up to half longer
AT_FIRST = 2  # of these, before the first image is read
TIMEOUT = "120s"  # of a request with its body
PAGE = 1000  # keys a request lists, which is what S3 gives at most
WRITE_CHUNK = 8 << 20  # bytes of a part of a multipart upload
_URL = re.compile(rb"(?:s3|gs|az|https?)://", re.IGNORECASE)
_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w{1,60})</Code>")
_BAD_KEY = re.compile(r'Path "(.*?)"[ :]', re.DOTALL)
_NO_IDENTITY = re.compile(r"169\.254\.|metadata\.google|/token\b|IMDS|ManagedIdentity")
_EXPIRED = frozenset({"ExpiredToken", "RequestExpired", "TokenRefreshRequired"})
_REGION = frozenset({"PermanentRedirect", "AuthorizationHeaderMalformed", "TemporaryRedirect"})
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class ObjectFault(Exception):
    """A request failed for good: `missing`, `denied`, `changed` since the listing, or the store is `down`."""

    def __init__(self, kind: FaultKind, reason: str, advice: str):
        super().__init__(f"{reason}: {advice}")
        self.kind: FaultKind = kind
        self.reason = reason
        self.advice = advice


class Location(NamedTuple):
    """An object, or what lies below a prefix."""

    root: str  # s3://bucket, or https://host
    key: str

    @property
    def url(self) -> str:
        """The whole address."""
        return f"{self.root}/{self.key}"


class Entry(NamedTuple):
    """One object as it was listed."""

    key: str
    size: int
    mtime: int  # us since the epoch
    etag: str | None


class _Retries:
    """Counts the requests of this process that were repeated; safe to use from many threads."""

    def __init__(self) -> None:
        self.count = 0
        self._lock = threading.Lock()

    def add(self) -> None:
        """Count one."""
        with self._lock:
            self.count += 1

    def taken(self) -> int:
        """Return the count since the last call."""
        if not self.count:
            return 0
        with self._lock:
            count, self.count = self.count, 0
            return count


retries = _Retries()


def is_url(name: bytes | str | os.PathLike[str]) -> bool:
    """Tell whether a name is the address of an object, or of a bucket."""
    return _URL.match(os.fsencode(name)) is not None


def without_file_scheme(name: Any) -> Any:
    """Return the path of a `file://` address, and any other name as it is.

    Raises Refused for a path of another machine.
    """
    if not os.fsencode(name).lower().startswith(b"file://"):
        return name
    host, _, path = os.fsdecode(name)[len("file://") :].partition("/")
    if host not in ("", "localhost"):
        raise Refused(f"file://{escaped(host)}/ is a path of another machine: name it as it is mounted here")
    return unquote(f"/{path}", errors="surrogateescape")


def located(name: bytes | str) -> Location:
    """Split an address; raises Refused for one without a bucket, or with what may be a secret, untold."""
    text = os.fsdecode(name)
    scheme, _, rest = text.partition("://")
    bucket, _, key = rest.partition("/")
    is_web = scheme.lower() in ("http", "https")
    if "@" in bucket or (is_web and ("?" in rest or "#" in rest)):
        raise Refused(
            f"an address {scheme.lower()}:// holds a user or a query, which may be a secret: give it "
            "without, and the credentials as the provider's own tools take them, by environment variables"
        )
    if not bucket:
        raise Refused(f"{escaped(text)} names no bucket: give {scheme}://BUCKET/PATH")
    return Location(f"{scheme.lower()}://{bucket}", unquote(key) if is_web else key)


def entry_at(at: Location, most: int = len(DELAYS_S)) -> Entry:
    """Look at an object; raises ObjectFault."""
    return _entry(_repeated(at, lambda: _obstore().head(_store(at.root), at.key), most))


def entries_below(at: Location, most: int = len(DELAYS_S)) -> Iterator[Entry]:
    """List what lies below a prefix, in the order of the store; raises ObjectFault.

    Memory holds one page. A page that fails is asked for again, from the last key on.
    """
    prefix, last, failed = at.key.rstrip("/") or None, None, 0
    while True:
        stream = _obstore().list(_store(at.root), prefix, offset=last, chunk_size=PAGE)
        try:
            for page in stream:
                for meta in page:
                    yield _entry(meta)
                    last, failed = meta["path"], 0
        except Exception as error:  # noqa: BLE001 - the classes of obstore share no base that says more
            _wait_or_raise(at, error, failed, most)
            failed += 1
        else:
            return


def read(at: Location, etag: str | None, start: int = 0, end: int | None = None) -> bytes:
    """Return the bytes from `start` to `end` of an object; raises ObjectFault, also for another etag."""
    options: dict[str, Any] = {} if etag is None else {"if_match": etag}
    if end is not None:
        options["range"] = (start, end)

    def get() -> bytes:
        answer = _obstore().get(_store(at.root), at.key, options=options)
        begin, stop = answer.range
        content = bytes(answer.bytes())
        if len(content) != stop - begin:
            raise EOFError("the answer was cut")
        return content

    return _repeated(at, get)


def write(at: Location, file: Path, most: int = len(DELAYS_S)) -> None:
    """Upload a file, large ones in parts; the object appears whole or not at all. Raises ObjectFault."""

    def put() -> None:
        _obstore().put(_store(at.root), at.key, file, chunk_size=WRITE_CHUNK)

    _repeated(at, put, most)


def fetch(at: Location, etag: str | None, file: Path) -> None:
    """Download an object into a new file, by ranges; raises ObjectFault, OSError."""
    size = entry_at(at).size
    with file.open("wb") as out:
        for start in range(0, size, WRITE_CHUNK):
            out.write(read(at, etag, start, min(size, start + WRITE_CHUNK)))
        out.flush()
        os.fsync(out.fileno())


def check_writable(at: Location) -> None:
    """Write and remove an empty object beside one that is to be written; raises ObjectFault.

    The bucket is looked at first, for some stores make one that is missing.
    """
    try:
        next(entries_below(Location(at.root, ""), AT_FIRST), None)
    except ObjectFault as fault:
        if fault.kind != "denied":  # a right to write need not be one to list
            raise
    probe = Location(at.root, f"{at.key}.probe")
    _repeated(probe, lambda: _obstore().put(_store(at.root), probe.key, b""), AT_FIRST)
    _repeated(probe, lambda: _obstore().delete(_store(at.root), probe.key), AT_FIRST)


def reopen() -> None:
    """Open buckets anew when they are next used: the environment has changed."""
    _store.cache_clear()


def _obstore(module: str = "obstore") -> Any:
    """Return a module of the client; raises MissingExtra."""
    try:
        return import_module(module)
    except ImportError:
        raise MissingExtra(f"obstore is not installed: {how_to_install('cloud')}") from None


@lru_cache(maxsize=64)
def _store(root: str) -> Any:
    """Open a bucket; nothing is asked of it yet. Raises MissingExtra, Refused."""
    open_store = _obstore("obstore.store").from_url
    client: dict[str, Any] = {"timeout": TIMEOUT, "connect_timeout": "10s"}
    if root.startswith("http://") or _endpoint().startswith("http://"):
        client["allow_http"] = True  # the user names an endpoint without TLS
    try:
        return open_store(root, client_options=client, retry_config={"max_retries": 0})
    except Exception:  # noqa: BLE001 - its words may quote the environment
        raise Refused(
            f"{root} cannot be opened with the settings in the environment: check its variables (for s3, "
            "those that begin with AWS_)"
        ) from None


def _endpoint() -> str:
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT", "AZURE_STORAGE_ENDPOINT")
    return next((os.environ[name] for name in names if name in os.environ), "")


def _entry(meta: Any) -> Entry:
    return Entry(meta["path"], meta["size"], (meta["last_modified"] - _EPOCH) // _MICROSECOND, meta["e_tag"])


def _repeated(at: Location, action: Callable[[], T], most: int = len(DELAYS_S)) -> T:
    """Call `action`, again while the store fails; raises ObjectFault."""
    failed = 0
    while True:
        try:
            return action()
        except (MissingExtra, Refused):
            raise
        except Exception as error:  # noqa: BLE001 - the classes of obstore share no base that says more
            _wait_or_raise(at, error, failed, most)
            failed += 1


def _wait_or_raise(at: Location, error: Exception, failed: int, most: int) -> None:
    """Wait before a request is repeated; raises ObjectFault if that is of no use, or was tried enough."""
    fault = _fault_of(at, error)
    if fault.kind != "down" or failed >= most:
        raise fault from None  # the cause may quote a secret
    log.debug("%s: %s; asking again", at.root, fault.reason)
    retries.add()
    time.sleep(DELAYS_S[min(failed, len(DELAYS_S) - 1)] * random.uniform(1, 1.5))


def _fault_of(at: Location, error: Exception) -> ObjectFault:
    """Judge an error by its class, status and code."""
    text = str(error)
    found = _CODE.search(text)
    code = found[1] if found else ""
    status = found[1] if (found := _STATUS.search(text)) else ""
    reason = f"{at.root} answers {status} {code}".rstrip() if status or code else ""
    if _NO_IDENTITY.search(text):
        advice = "give them as the provider's own tools take them, by environment variables or a role"
        return ObjectFault("denied", f"there are no credentials for {at.root}", advice)
    if code in _EXPIRED:
        return ObjectFault("denied", f"the credentials for {at.root} have expired ({code})", "renew them")
    if code in _REGION or "incorrectly configured region" in text or status in ("301", "307"):
        return ObjectFault(
            "denied", f"{at.root} is in another region", "set AWS_REGION to that of the bucket"
        )
    if code == "NoSuchBucket":
        return ObjectFault("missing", f"the bucket {at.root} does not exist", "check its name")
    if status == "412" or type(error).__name__ == "PreconditionError":
        return ObjectFault("changed", reason or "it was replaced", "it was replaced since it was listed")
    if status in ("401", "403") or type(error).__name__ in ("PermissionDeniedError", "UnauthenticatedError"):
        advice = "check the credentials, and their right to read and list here (to write, of an output)"
        return ObjectFault("denied", reason or f"{at.root} refuses these credentials", advice)
    if status == "404" or isinstance(error, FileNotFoundError):
        return ObjectFault("missing", reason or f"{at.root} has no such object", "check the name")
    if status.startswith("4") and status not in ("408", "429"):
        return ObjectFault("denied", reason, "check the address, and the settings in the environment")
    if type(error).__name__ == "InvalidPathError" or isinstance(error, ValueError):
        key = f" '{escaped(found[1])[:200]}'" if (found := _BAD_KEY.search(text)) else ""
        reason = f"{at.root} holds the key{key}, which the client cannot ask for"
        return ObjectFault("denied", reason, "rename the object, or name a source beside it")
    if type(error).__name__ == "NotSupportedError":
        return ObjectFault("denied", f"{at.root} does not serve ranges", "copy the tar to a disk or a store")
    if "Content-Length Header missing" in text:
        return ObjectFault("denied", f"{at.root} does not tell sizes", "copy the file to a disk or a store")
    reason = reason or f"{at.root} does not answer, or its answers are cut"
    return ObjectFault("down", reason, "check the network and the endpoint")
