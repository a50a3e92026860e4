// The monotonic clocks as a program sees them from its start on: never backwards, never less than the kernel's,
// and moving in the end. Prints the nanoseconds of the first reading.
#define _GNU_SOURCE
#include <poll.h>
#include <stdio.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static int64_t at(clockid_t id)
{
    struct timespec now;
    clock_gettime(id, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static int64_t of_kernel(clockid_t id)
{
    struct timespec now;
    syscall(SYS_clock_gettime, id, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

int main(void)
{
    static const clockid_t ids[] = { CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_MONOTONIC_RAW };
    int64_t last[3], first[3];
    for (int index = 0; index < 3; index++)
        first[index] = last[index] = at(ids[index]);
    printf("%lld %lld %lld\n", (long long)(first[0] % 1000000000), (long long)(first[1] % 1000000000),
           (long long)(first[2] % 1000000000));
    // A span is as long as it is asked for, a deadline is not met too early.
    poll(NULL, 0, 10);
    struct timespec until = { first[0] / 1000000000, first[0] % 1000000000 };
    until.tv_nsec += 1000000;
    if (until.tv_nsec >= 1000000000) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000;
    }
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
    if (at(CLOCK_MONOTONIC) < until.tv_sec * 1000000000LL + until.tv_nsec)
        return 1;
    for (int moved = 0; moved < 3;) {
        moved = 0;
        for (int index = 0; index < 3; index++) {
            // (RAW and the coarse clocks have a pace or a granularity of their own.)
            int64_t kernels = of_kernel(ids[index]), now = at(ids[index]);
            if (now < last[index] || now < kernels)
                return 2;
            last[index] = now;
            moved += now > first[index];
        }
    }
    return 0;
}
