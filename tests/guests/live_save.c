// cc: -pthread
// Counts in several processes and threads, and complains in the file `broken` about anything that cannot
// be unless a save of the running program was no single moment, or was noticed.
//
// Each counter is two words, the second of which follows the first; some are in shared memory, some in
// memory that a fork leaves out or empties. Threads wait for a child that never ends, and for the end of
// a pipe, whose writer closes it once the file `close` is there: `eof` is made then.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { WORDS = 1 << 20, SKIPPED = 511, BURST = 20000 };

static void broken(const char *what, long one, long other)
{
    int fd = open("broken", O_WRONLY | O_CREAT | O_APPEND, 0644);
    dprintf(fd, "%s: %ld %ld (%s)\n", what, one, other, strerror(errno));
    _exit(9);
}

// One that is restored may find its sleep at an end.
static void doze(const char *who)
{
    struct timespec moment = { 0, 1000000 };
    if (nanosleep(&moment, NULL) && access("restored", F_OK))
        broken(who, 0, 0);
}

static volatile uint64_t *page(int how, int advice)
{
    void *made = mmap(NULL, 8192, PROT_READ | PROT_WRITE, how | MAP_ANONYMOUS, -1, 0);
    if (made == MAP_FAILED || (advice && madvise(made, 8192, advice)))
        broken("mmap", (long)made, advice);
    return made;
}

static void *count(void *name)
{
    volatile uint64_t *all[] = {
        page(MAP_SHARED, 0), page(MAP_PRIVATE, 0), page(MAP_PRIVATE, MADV_WIPEONFORK),
        page(MAP_PRIVATE, MADV_DONTFORK), page(MAP_PRIVATE, 0),
    };
    for (uint64_t round = 0;; round++) {
        for (int at = 0; at < 5; at++) {
            if (*all[at] != round)
                broken(name, at, (long)(*all[at] - round));
            *all[at] = round + 1;
        }
        for (int at = 0; at < 5; at++)
            all[at][SKIPPED] = round;
        // All of them together leave processors to the others, and to the kernel's own threads.
        if (round % BURST == 0)
            doze(name);
    }
    return NULL;
}

static void *wait_for_child(void *nothing)
{
    int status = 0;
    long done = wait4(-1, &status, __WALL, NULL);
    broken("a child has ended", done, status);
    return nothing;
}

static void *wait_for_end(void *fd)
{
    char byte;
    long done = read(*(int *)fd, &byte, 1);
    if (done)
        broken("read", done, 0);
    close(open("eof", O_WRONLY | O_CREAT, 0644));
    return NULL;
}

int main(void)
{
    int ends[2];
    uint64_t *words = malloc(WORDS * sizeof *words);
    uint64_t seed = 88172645463325252u;
    for (int at = 0; at < WORDS; at++) {
        seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
        words[at] = seed;
    }
    if (pipe(ends))
        broken("pipe", 0, 0);
    for (int child = 0; child < 2; child++) {
        if (fork())
            continue;
        pthread_t thread;
        close(ends[0]);
        pthread_create(&thread, NULL, count, "a thread of a child");
        if (child)
            close(ends[1]);
        while (!child && access("close", F_OK))
            doze("nanosleep of a child");
        close(ends[1]);
        count("a child");
    }
    close(ends[1]);
    pthread_t thread;
    pthread_create(&thread, NULL, wait_for_child, NULL);
    pthread_create(&thread, NULL, wait_for_end, &ends[0]);
    pthread_create(&thread, NULL, count, "a thread");
    int ticks = open("ticks", O_WRONLY | O_CREAT | O_TRUNC, 0644);
    for (long tick = 0;; tick++) {
        int status;
        long done = wait4(-1, &status, WNOHANG | __WALL, NULL);
        if (done)
            broken("wait4", done, status);
        doze("nanosleep");
        if (tick % 16 == 0) {
            char text[32];
            int length = snprintf(text, sizeof text, "%016ld\n", tick);
            if (pwrite(ticks, text, length, 0) != length)
                broken("pwrite", 0, 0);
        }
    }
}
