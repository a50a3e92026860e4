// cc: -pthread
/*
 * Counts in a file, so that the outside sees whether anybody runs.
 *
 *     counters threads|processes COUNT NAP     each counts, then naps for NAP us (0: spins)
 *     counters storm                            processes that fork and end: a chain and a tree
 *     counters vforks                           vfork(2) after vfork(2)
 *     counters vfork                            one, whose child ends once its input has
 *
 * The file `counters` of the working directory holds a number each, 64 bytes apart; the first is the
 * outside's and ends the program when it is not 0. Prints "ready" once all count.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/mman.h>
#include <sys/wait.h>

enum { SLOTS = 2048, STRIDE = 8 };
static volatile uint64_t *slots;
static long nap;

static void ready(void) {
    if (write(1, "ready\n", 6) != 6) exit(1);
}

static void count(long slot) {
    while (!slots[0]) {
        __atomic_fetch_add(&slots[slot * STRIDE], 1, __ATOMIC_RELAXED);
        if (nap) usleep(nap);
    }
}

static void *counting_thread(void *slot) {
    count((long)slot);
    return NULL;
}

static void started(long count) {
    for (long i = 1; i <= count; i++)
        while (!slots[i * STRIDE]) usleep(1000);
    ready();
}

/* A process that only forks its successor and ends. */
static void chain(void) {
    while (!slots[0]) {
        __atomic_fetch_add(&slots[STRIDE], 1, __ATOMIC_RELAXED);
        if (fork() > 0) _exit(0);
    }
    _exit(0);
}

static int64_t alive(int change) {
    return __atomic_add_fetch(&slots[3 * STRIDE], change, __ATOMIC_RELAXED);
}

/* A process that makes two others, while there are few, and ends. */
static void node(void) {
    __atomic_fetch_add(&slots[2 * STRIDE], 1, __ATOMIC_RELAXED);
    for (int i = 0; i < 2 && !slots[0]; i++) {
        pid_t pid = alive(1) < 60 ? fork() : -1;
        if (pid == 0) {
            i = -1;
            __atomic_fetch_add(&slots[2 * STRIDE], 1, __ATOMIC_RELAXED);
        }
        if (pid < 0) alive(-1);
    }
    alive(-1);
    _exit(0);
}

int main(int argc, char **argv) {
    int file = open("counters", O_RDWR | O_CREAT, 0600);
    if (argc < 2 || file < 0 || ftruncate(file, SLOTS * STRIDE * 8)) return 2;
    slots = mmap(NULL, SLOTS * STRIDE * 8, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (slots == MAP_FAILED) return 2;
    long number = argc > 2 ? atol(argv[2]) : 0;
    nap = argc > 3 ? atol(argv[3]) : 0;
    if (!strcmp(argv[1], "threads")) {
        pthread_attr_t small;
        pthread_attr_init(&small);
        pthread_attr_setstacksize(&small, 64 << 10);
        pthread_t threads[SLOTS];
        for (long i = 1; i <= number; i++)
            if (pthread_create(&threads[i], &small, counting_thread, (void *)i)) return 3;
        started(number);
        for (long i = 1; i <= number; i++) pthread_join(threads[i], NULL);
    } else if (!strcmp(argv[1], "processes")) {
        for (long i = 1; i <= number; i++) {
            pid_t pid = fork();
            if (pid < 0) return 3;
            if (pid == 0) {
                count(i);
                _exit(0);
            }
        }
        started(number);
        while (wait(NULL) > 0) {}
    } else if (!strcmp(argv[1], "storm")) {
        signal(SIGCHLD, SIG_IGN);
        if (fork() == 0) chain();
        for (int announced = 0; !slots[0]; usleep(100)) {
            pid_t pid = alive(1) < 60 ? fork() : -1;
            if (pid == 0) node();
            if (pid < 0) alive(-1);
            if (!announced && slots[STRIDE] && slots[2 * STRIDE]) announced = 1, ready();
        }
        while (wait(NULL) > 0) {}
    } else if (!strcmp(argv[1], "vfork")) {
        int status;
        pid_t pid = vfork();
        if (pid == 0) {
            char byte;
            ready();
            _exit(read(0, &byte, 1) == 0 ? 5 : 6);
        }
        return waitpid(pid, &status, 0) == pid && status == 5 << 8 ? 0 : 4;
    } else {
        while (!slots[0]) {
            pid_t pid = vfork();
            if (pid == 0) {
                slots[STRIDE]++;
                _exit(0);
            }
            int status;
            if (pid < 0 || waitpid(pid, &status, 0) != pid || status) return 4;
            if (slots[STRIDE] == 1) ready();
        }
    }
    return 0;
}
