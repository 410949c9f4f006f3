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
    def buffer(self, cdata: Any, /) -> Any: ...
    def new_allocator(self, *, should_clear_after_alloc: bool) -> Any: ...
    def new(self, cdecl: str, init: Any = ..., /) -> Any: ...
    def sizeof(self, cdecl: Any, /) -> int: ...
    def typeof(self, cdecl: str, /) -> Any: ...
    def unpack(self, cdata: Any, length: int, /) -> Any: ...

class _Lib(Protocol):
    AF_UNIX: int
    CREDS_ROOM: int
    LABEL_MAX: int
    LABEL_ROOM: int
    MSG_CMSG_CLOEXEC: int
    MSG_CTRUNC: int
    PIDFD_ROOM: int
    SCM_CREDENTIALS: int
    SCM_PIDFD: int
    SCM_RIGHTS: int
    SCM_SECURITY: int
    SOCK_DGRAM: int
    SOCK_STREAM: int
    SOL_SOCKET: int
    SO_ACCEPTCONN: int
    SO_DOMAIN: int
    SO_PASSCRED: int
    SO_PASSPIDFD: int
    SO_PASSSEC: int
    SO_PEERGROUPS: int
    SO_PEERPIDFD: int
    SO_PEERSEC: int
    SO_TYPE: int

    def getsockopt(self, sockfd: int, level: int, optname: int, optval: Any, optlen: Any, /) -> int: ...
    def setsockopt(self, sockfd: int, level: int, optname: int, optval: Any, optlen: int, /) -> int: ...
    def passing(self, fd: int, /) -> int: ...
    def peer_option(self, fd: int, option: int, value: Any, size: int, /) -> int: ...
    def peercred(self, fd: int, /) -> _Ucred: ...
    def unpack_ucred(self, payload: bytes, /) -> _Ucred: ...

ffi: _FFI
lib: _Lib
