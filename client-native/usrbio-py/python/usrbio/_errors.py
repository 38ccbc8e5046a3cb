"""The one exception of the package that Python does not have itself."""

import errno
import os
from array import array

# What an errno of a request means here, where the system's own words would mislead.
_HINTS = {
    errno.EBADF: "the daemon does not know the file any more, or it is no regular file",
    errno.EINVAL: "the daemon does not know the Iov, or the request is outside of it",
    errno.ENODATA: "the bytes lie in a hole of the file",
}


class RequestError(OSError):
    """Some requests of a batch failed. All of them are complete.

    `errno` and `index` are of the first one that failed. `results` is the array that the call would have
    returned: bytes moved, or ``-errno`` for those that failed.
    """

    def __init__(self, results: "array[int]", index: int) -> None:
        code = -results[index]
        why = os.strerror(code)
        if hint := _HINTS.get(code):
            why += f" ({hint})"
        failed = sum(1 for result in results if result < 0)
        super().__init__(
            code, f"{failed} of {len(results)} requests failed, the first one is request {index}: {why}"
        )
        self.results = results
        self.index = index

    def __reduce__(self) -> "tuple[type[RequestError], tuple[array[int], int]]":
        """Pickles, so that it can come out of a worker process."""
        return type(self), (self.results, self.index)
