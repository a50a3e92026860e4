/*
 * A program that somebody starts in a running sandbox, with a child of its own.
 *
 *     save_later NAME     reads a line, makes up-NAME, and counts until there is go. Then numbers of processes,
 *                         groups and sessions must be what they were, and the rest of the input must be "late\n".
 *                         Says so on both outputs and in out-NAME.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static char name[64];

#define CHECK(what) do { if (!(what)) tell("out-", "line %d: not so: %s (%s)\n", __LINE__, #what, strerror(errno)); } while (0)

/* Writes a file PREFIX-NAME that is whole once it is there. */
#define tell(prefix, ...) do { \
    char path[96], part[128]; \
    snprintf(path, sizeof path, "%s%s", prefix, name); \
    snprintf(part, sizeof part, "%s.%d", path, getpid()); \
    FILE *file = fopen(part, "w"); \
    fprintf(file, __VA_ARGS__); \
    fclose(file); \
    rename(part, path); \
} while (0)

struct ids { pid_t own, parent, group, session; };

static struct ids ids(void) {
    return (struct ids){getpid(), getppid(), getpgrp(), getsid(0)};
}

static volatile unsigned long count;

static void wait_for_go(void) {
    struct timespec moment = {0, 1000000};
    while (access("go", F_OK) != 0) {
        count++;
        nanosleep(&moment, NULL);
    }
}

/* The input up to a newline, or all of it. */
static size_t input(char *to, size_t room, int whole) {
    size_t length = 0;
    while (length < room && read(0, to + length, 1) == 1)
        if (to[length++] == '\n' && !whole) break;
    return length;
}

int main(int argc, char **argv) {
    char text[64];
    snprintf(name, sizeof name, "%s", argc > 1 ? argv[1] : "it");
    CHECK(input(text, sizeof text, 0) == 6 && !memcmp(text, "early\n", 6));
    pid_t child = fork();
    struct ids before = ids();
    if (child == 0) {
        wait_for_go();
        struct ids now = ids();
        _exit(memcmp(&before, &now, sizeof now) ? 1 : 5);
    }
    tell("up-", "%d\n", before.own);
    wait_for_go();
    struct ids now = ids();
    CHECK(memcmp(&before, &now, sizeof now) == 0);
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 5);
    CHECK(kill(before.parent, 0) == 0);
    CHECK(input(text, sizeof text, 1) == 5 && !memcmp(text, "late\n", 5));
    printf("%s ends\n", name);
    fflush(stdout);
    fprintf(stderr, "%s says so\n", name);
    char path[96];
    snprintf(path, sizeof path, "out-%s", name);
    if (access(path, F_OK) != 0) tell("out-", "well\n");
    return 7;
}
