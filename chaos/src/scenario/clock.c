// libfaketime does not know cnd_timedwait of C11, by which librdkafka waits until a time that it has read from the wall
// clock. This one waits as the kernel does when somebody sets the clock: until the clock, as it is then, has come so far.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/syscall.h>
#include <threads.h>
#include <time.h>
#include <unistd.h>

static const long SECOND = 1000000000, SLICE = 200000000; // ns

int cnd_timedwait(cnd_t *cond, mtx_t *mutex, const struct timespec *until)
{
    int (*wait)(cnd_t *, mtx_t *, const struct timespec *) = dlsym(RTLD_NEXT, "cnd_timedwait");
    for (;;) {
        struct timespec faked, real;
        clock_gettime(CLOCK_REALTIME, &faked);
        syscall(SYS_clock_gettime, CLOCK_REALTIME, &real);
        long long left = (until->tv_sec - faked.tv_sec) * (long long)SECOND + until->tv_nsec - faked.tv_nsec;
        if (left <= 0)
            return thrd_timedout;
        real.tv_nsec += left < SLICE ? left : SLICE;
        real.tv_sec += real.tv_nsec / SECOND;
        real.tv_nsec %= SECOND;
        int woken = wait(cond, mutex, &real);
        if (woken != thrd_timedout)
            return woken;
    }
}
