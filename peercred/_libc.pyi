# Types of the compiled module, whose C surface is in build_ffi.py.

from typing import Any, Protocol

class _Ucred(Protocol):
    @property
    def pid(self) -> int: ...
    @property
    def uid(self) -> int: ...
    @property
    def gid(self) -> int: ...

class _FFI(Protocol):
    @property
    def errno(self) -> int: ...
    def new(self, cdecl: str, init: Any = ..., /) -> Any: ...
    def sizeof(self, cdecl: Any, /) -> int: ...

class _Lib(Protocol):
    AF_UNIX: int
    SOCK_DGRAM: int
    SOL_SOCKET: int
    SO_ACCEPTCONN: int
    SO_DOMAIN: int
    SO_TYPE: int

    def getsockopt(self, sockfd: int, level: int, optname: int, optval: Any, optlen: Any, /) -> int: ...
    def peercred(self, fd: int, /) -> _Ucred: ...

ffi: _FFI
lib: _Lib
