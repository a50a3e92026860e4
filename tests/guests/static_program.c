// cc: -static -pthread
// A program without an interpreter: threads, time and a child in a static binary.
#include <pthread.h>
#include <stdio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void *answer(void *number)
{
    *(int *)number = 42;
    return NULL;
}

int main(int argc, char **argv)
{
    int number = 0;
    pthread_t thread;
    struct timespec now;
    if (pthread_create(&thread, NULL, answer, &number) || pthread_join(thread, NULL))
        return 1;
    if (number != 42 || clock_gettime(CLOCK_MONOTONIC, &now))
        return 2;
    printf("static, given %s\n", argc > 1 ? argv[1] : "nothing");
    fflush(stdout);
    pid_t child = fork();
    if (child == 0)
        _exit(7);
    int status;
    return waitpid(child, &status, 0) == child && WEXITSTATUS(status) == 7 ? 0 : 3;
}
