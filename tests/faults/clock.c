/* Preloaded, it moves the wall clock of a process by CLOCK_OFFSET seconds, for Python and for Rust; and the times of
 * files that Rust sees, whose clock is the same on a local disk. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <time.h>

static long offset(void) {
    const char *text = getenv("CLOCK_OFFSET");
    return text ? atol(text) : 0;
}

int clock_gettime(clockid_t clock, struct timespec *out) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int code = real(clock, out);
    if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE) out->tv_sec += offset();
    return code;
}

int gettimeofday(struct timeval *restrict out, void *restrict zone) {
    static int (*real)(struct timeval *, void *);
    if (!real) real = dlsym(RTLD_NEXT, "gettimeofday");
    int code = real(out, zone);
    out->tv_sec += offset();
    return code;
}

time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out) *out = now.tv_sec;
    return now.tv_sec;
}

int statx(int folder, const char *restrict path, int flags, unsigned int mask, struct statx *restrict out) {
    static int (*real)(int, const char *restrict, int, unsigned int, struct statx *restrict);
    if (!real) real = dlsym(RTLD_NEXT, "statx");
    int code = real(folder, path, flags, mask, out);
    if (!code) out->stx_mtime.tv_sec += offset();
    return code;
}
