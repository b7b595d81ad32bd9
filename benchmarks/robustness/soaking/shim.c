/* Faults of calls into libc, and a clock that jumps, for a process that is started with LD_PRELOAD.
 *
 * All processes of a scan share the file SOAK_SHIM, mapped: their calls are counted together, and the driver
 * reads and writes it while they run. Only calls on paths below `below` count. shim.py has the same layout.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { WRITE, FSYNC, RENAME, OPEN, KINDS };

struct shared {
    uint64_t calls[KINDS];
    uint64_t fired;
    uint64_t kind;    /* of the call that fails */
    uint64_t nth;     /* the first that fails, from 1; 0: none */
    uint64_t every;   /* then each of so many; 1: all from then on; 0: no more */
    uint64_t error;   /* errno; 0: a write of half of the bytes */
    int64_t seconds;  /* added to the clock */
    char below[4000];
};

static struct shared *shared;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("SOAK_SHIM");
    int (*real)(const char *, int, ...) = dlsym(RTLD_NEXT, "open");
    int fd = path ? real(path, O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0) return;
    void *at = mmap(0, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (at != MAP_FAILED) shared = at;
}

/* Count a call on a path; say whether it is one that fails. */
static int hit(int kind, const char *path) {
    if (!shared || strncmp(path, shared->below, strlen(shared->below))) return 0;
    uint64_t n = __atomic_add_fetch(&shared->calls[kind], 1, __ATOMIC_SEQ_CST), first = shared->nth;
    if (!first || kind != (int)shared->kind || n < first) return 0;
    if (n > first && (!shared->every || (n - first) % shared->every)) return 0;
    __atomic_add_fetch(&shared->fired, 1, __ATOMIC_SEQ_CST);
    return 1;
}

static int hit_fd(int kind, int fd) {
    char link[40], path[PATH_MAX];
    if (!shared || fd < 0) return 0;
    strcpy(link, "/proc/self/fd/");
    char digits[12], *at = digits + 11;
    *at = 0;
    do { *--at = '0' + fd % 10; fd /= 10; } while (fd);
    strcat(link, at);
    ssize_t size = readlink(link, path, sizeof path - 1);
    if (size < 0) return 0;
    path[size] = 0;
    return hit(kind, path);
}

static int hit_at(int kind, int folder, const char *path) {
    char whole[2 * PATH_MAX], link[40];
    if (!shared || !path) return 0;
    if (path[0] == '/') return hit(kind, path);
    if (folder == AT_FDCWD) {
        if (!getcwd(whole, PATH_MAX)) return 0;
    } else {
        char digits[12], *at = digits + 11;
        *at = 0;
        do { *--at = '0' + folder % 10; folder /= 10; } while (folder);
        strcpy(link, "/proc/self/fd/");
        strcat(link, at);
        ssize_t size = readlink(link, whole, PATH_MAX - 1);
        if (size < 0) return 0;
        whole[size] = 0;
    }
    strcat(whole, "/");
    strncat(whole, path, PATH_MAX - 1);
    return hit(kind, whole);
}

#define REAL(result, name, ...) \
    static result (*real)(__VA_ARGS__); \
    if (!real) real = (result (*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)

#define FAILED (errno = (int)shared->error, -1)

static size_t less(size_t size) { return size > 1 ? size / 2 : size; }

#define WRITES(name, offset_type)                                                       \
    ssize_t name(int fd, const void *data, size_t size, offset_type offset) {           \
        REAL(ssize_t, name, int, const void *, size_t, offset_type);                    \
        if (hit_fd(WRITE, fd)) {                                                        \
            if (shared->error) return FAILED;                                           \
            size = less(size);                                                          \
        }                                                                               \
        return real(fd, data, size, offset);                                            \
    }
WRITES(pwrite, off_t)
WRITES(pwrite64, off64_t)

ssize_t write(int fd, const void *data, size_t size) {
    REAL(ssize_t, write, int, const void *, size_t);
    if (hit_fd(WRITE, fd)) {
        if (shared->error) return FAILED;
        size = less(size);
    }
    return real(fd, data, size);
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    REAL(ssize_t, writev, int, const struct iovec *, int);
    if (hit_fd(WRITE, fd)) {
        if (shared->error) return FAILED;
        count = count > 1 ? count / 2 : count;
    }
    return real(fd, parts, count);
}

#define SYNCS(name)                                              \
    int name(int fd) {                                           \
        REAL(int, name, int);                                    \
        if (hit_fd(FSYNC, fd) && shared->error) return FAILED;   \
        return real(fd);                                         \
    }
SYNCS(fsync)
SYNCS(fdatasync)

int rename(const char *from, const char *to) {
    REAL(int, rename, const char *, const char *);
    if (hit_at(RENAME, AT_FDCWD, to) && shared->error) return FAILED;
    return real(from, to);
}

int renameat(int a, const char *from, int b, const char *to) {
    REAL(int, renameat, int, const char *, int, const char *);
    if (hit_at(RENAME, b, to) && shared->error) return FAILED;
    return real(a, from, b, to);
}

int renameat2(int a, const char *from, int b, const char *to, unsigned flags) {
    REAL(int, renameat2, int, const char *, int, const char *, unsigned);
    if (hit_at(RENAME, b, to) && shared->error) return FAILED;
    return real(a, from, b, to, flags);
}

#define MODE                                                          \
    mode_t mode = 0;                                                  \
    if (flags & O_CREAT || (flags & O_TMPFILE) == O_TMPFILE) {        \
        va_list rest;                                                 \
        va_start(rest, flags);                                        \
        mode = va_arg(rest, mode_t);                                  \
        va_end(rest);                                                 \
    }

#define OPENS(name)                                                            \
    int name(const char *path, int flags, ...) {                               \
        REAL(int, name, const char *, int, ...);                               \
        MODE                                                                   \
        if (hit_at(OPEN, AT_FDCWD, path) && shared->error) return FAILED;      \
        return real(path, flags, mode);                                        \
    }
OPENS(open)
OPENS(open64)

#define OPENATS(name)                                                          \
    int name(int folder, const char *path, int flags, ...) {                   \
        REAL(int, name, int, const char *, int, ...);                          \
        MODE                                                                   \
        if (hit_at(OPEN, folder, path) && shared->error) return FAILED;        \
        return real(folder, path, flags, mode);                                \
    }
OPENATS(openat)
OPENATS(openat64)

int clock_gettime(clockid_t clock, struct timespec *now) {
    REAL(int, clock_gettime, clockid_t, struct timespec *);
    int code = real(clock, now);
    if (shared && !code && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += shared->seconds;
    return code;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    REAL(int, gettimeofday, struct timeval *, void *);
    int code = real(now, zone);
    if (shared && !code) now->tv_sec += shared->seconds;
    return code;
}

time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out) *out = now.tv_sec;
    return now.tv_sec;
}
