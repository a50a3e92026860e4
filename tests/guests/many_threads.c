// cc: -pthread
// Threads that all live at once: each waits for the last one, makes calls (one of them is served by
// the sentry inside), and ends.
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/klog.h>
#include <sys/syscall.h>
#include <unistd.h>

static pthread_barrier_t all;
static int ends[2];

static void *live(void *argument)
{
    (void)argument;
    pid_t own = (pid_t)syscall(SYS_gettid);
    pthread_barrier_wait(&all);
    for (int i = 0; i < 20; i++) {
        klogctl(10, NULL, 0);
        if (syscall(SYS_gettid) != own)
            exit(2);
    }
    if (write(ends[1], "x", 1) != 1)
        exit(3);
    pthread_barrier_wait(&all);
    return NULL;
}

int main(int argc, char **argv)
{
    int count = argc > 1 ? atoi(argv[1]) : 1;
    pthread_t *threads = calloc((size_t)count, sizeof *threads);
    pthread_attr_t small;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 64 << 10);
    pthread_barrier_init(&all, NULL, (unsigned)count + 1);
    if (pipe(ends))
        return 1;
    for (int i = 0; i < count; i++) {
        int error = pthread_create(&threads[i], &small, live, NULL);
        if (error) {
            printf("thread %d: %s\n", i, strerror(error));
            return 1;
        }
    }
    pthread_barrier_wait(&all);
    char byte;
    for (int i = 0; i < count; i++)
        if (read(ends[0], &byte, 1) != 1)
            return 1;
    pthread_barrier_wait(&all);
    for (int i = 0; i < count; i++)
        pthread_join(threads[i], NULL);
    printf("%d threads lived at once\n", count);
    return 0;
}
