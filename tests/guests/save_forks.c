// cc: -pthread
/*
 * A family of processes that have most of their memory in common, across a save.
 *
 *     save_forks READY GO    touches READY; goes on once GO exists, after the save
 *
 * Each has changed, given away, protected and unmapped pages of its own before. Each looks at every page after, and
 * what one of them writes then is seen by nobody else. What all of them take together (Pss) is no more than before.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/mman.h>
#include <sys/wait.h>

enum { PAGE = 4096, PAGES = 4096, WORKERS = 6, GRANDCHILD = WORKERS + 1, ALL = WORKERS + 2, FILE_PAGES = 64, PIECES = 20000 };
/* Worker 2 has unmapped the first of these pages, worker 3 only reads the second. */
enum { GONE = 1024, READ_ONLY = 2048, SPAN = 100 };

static int failed;
#define CHECK(what) do { if (!(what)) { failed = 1; printf("%d, line %d: not so: %s (%s)\n", who, __LINE__, #what, strerror(errno)); fflush(stdout); } } while (0)

static struct {
    pthread_barrier_t barrier;
    int pids[ALL];
} *all;
static int who;
static char *memory, *file;
static char *pieces[PIECES];
static char zeroed[300 * PAGE];

/* What is in a page: 0 stands for zeros, -1 for no page at all. `written`: at the end. */
static int64_t content(int of, int page, int written) {
    int turn = page % 64;
    if (of == 2 && page >= GONE && page < GONE + SPAN) return -1;
    if (written && turn == 40 + of) return 500000000 + of * 100000 + page;
    if (of == 0 && page % 16 == 8) return 90000000 + page;
    if (of == 1 && turn == 20) return 70000000 + page;
    if (of == GRANDCHILD && turn == GRANDCHILD) return of * 1000000 + page;
    int first = of == GRANDCHILD ? 1 : of;
    if (first > 0 && turn == first) return first * 1000000 + page;
    if (first > 0 && turn == 32 + first) return 0;
    return 1000 + page;
}
static int is_read_only(int page) { return who == 3 && page >= READ_ONLY && page < READ_ONLY + SPAN; }

static void fill(char *page, int64_t seed) {
    uint64_t *words = (uint64_t *)page;
    for (int i = 0; i < PAGE / 8; i++) words[i] = seed ? seed * 0x9e3779b97f4a7c15 + i : 0;
}
static int is_filled(const char *page, int64_t seed) {
    const uint64_t *words = (const uint64_t *)page;
    for (int i = 0; i < PAGE / 8; i++)
        if (words[i] != (seed ? seed * 0x9e3779b97f4a7c15 + i : 0)) return 0;
    return 1;
}
static void change(int turn) {
    for (int page = turn; page < PAGES; page += 64) fill(memory + page * PAGE, content(who, page, 0));
}
static int is_there(char *page) {
    unsigned char resident;
    return mincore(page, PAGE, &resident) == 0;
}
static void look(int written) {
    int wrong = 0;
    for (int page = 0; page < PAGES; page++) {
        char *at = memory + page * PAGE;
        int64_t seed = content(who, page, written && !is_read_only(page));
        wrong += seed < 0 ? is_there(at) : !is_filled(at, seed);
    }
    for (int page = 0; page < FILE_PAGES; page++) wrong += !is_filled(file + page * PAGE, page < 40 ? 7000 + page : 0);
    for (int page = 0; page < 300; page++) wrong += !is_filled(zeroed + page * PAGE, page < 200 ? 8000 + page : 0);
    for (int piece = 0; piece < PIECES; piece++) wrong += memcmp(pieces[piece], &piece, sizeof piece) != 0;
    CHECK(wrong == 0);
}
static void all_wait(void) { pthread_barrier_wait(&all->barrier); }

/* Kilobytes that all of them take, each its part of what they share. */
static unsigned long taken(void) {
    unsigned long sum = 0;
    for (int i = 0; i < ALL; i++) {
        char line[256];
        snprintf(line, sizeof line, "/proc/%d/smaps_rollup", all->pids[i]);
        FILE *rollup = fopen(line, "r");
        unsigned long kilobytes;
        while (rollup && fgets(line, sizeof line, rollup))
            if (sscanf(line, "Pss: %lu", &kilobytes) == 1) sum += kilobytes;
        CHECK(rollup && fclose(rollup) == 0);
    }
    return sum;
}

static void make(int number, void (*be)(void)) {
    int pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        who = number;
        be();
        exit(failed);
    }
}
static void live(void) {
    all->pids[who] = getpid();
    all_wait();
    /* Here a save happens. */
    all_wait();
    look(0);
    for (int page = 40 + who; page < PAGES; page += 64)
        if (content(who, page, 0) >= 0 && !is_read_only(page)) fill(memory + page * PAGE, content(who, page, 1));
    all_wait();
    look(1);
    /* What was one mapping, or comes to be one again, can be moved as one. */
    if (who != 2) {
        CHECK(mprotect(memory, PAGES * PAGE, PROT_READ | PROT_WRITE) == 0);
        char *moved = mremap(memory, PAGES * PAGE, 2 * PAGES * PAGE, MREMAP_MAYMOVE);
        CHECK(moved != MAP_FAILED);
        memory = moved;
        look(1);
    }
}
static void grandchild(void) {
    change(GRANDCHILD);
    live();
}
static void work(void) {
    change(who);
    for (int page = 32 + who; page < PAGES; page += 64) CHECK(madvise(memory + page * PAGE, PAGE, MADV_DONTNEED) == 0);
    if (who == 2) CHECK(munmap(memory + GONE * PAGE, SPAN * PAGE) == 0);
    if (who == 3) CHECK(mprotect(memory + READ_ONLY * PAGE, SPAN * PAGE, PROT_READ) == 0);
    if (who == 1) {
        make(GRANDCHILD, grandchild);
        change(20);
    }
    live();
    int status = 0;
    if (who == 1) CHECK(wait(&status) > 0 && status == 0);
}

int main(int argc, char **argv) {
    if (argc < 3) return 2;
    all = mmap(NULL, sizeof *all, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pthread_barrierattr_t attributes;
    pthread_barrierattr_init(&attributes);
    pthread_barrierattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
    pthread_barrier_init(&all->barrier, &attributes, ALL);

    memory = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    int fd = open("table", O_RDWR | O_CREAT | O_TRUNC, 0600);
    CHECK(memory != MAP_FAILED && fd >= 0 && ftruncate(fd, FILE_PAGES * PAGE) == 0);
    file = mmap(NULL, FILE_PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    CHECK(file != MAP_FAILED && close(fd) == 0);
    for (int page = 0; page < PAGES; page++) fill(memory + page * PAGE, 1000 + page);
    for (int page = 0; page < 40; page++) fill(file + page * PAGE, 7000 + page);
    for (int page = 0; page < 200; page++) fill(zeroed + page * PAGE, 8000 + page);
    for (int piece = 0; piece < PIECES; piece++) {
        pieces[piece] = malloc(100);
        memcpy(pieces[piece], &piece, sizeof piece);
    }

    for (int worker = 1; worker <= WORKERS; worker++) make(worker, work);
    all->pids[0] = getpid();
    change(8), change(24), change(40), change(56);
    all_wait();
    unsigned long before = taken();
    int ready = open(argv[1], O_CREAT | O_WRONLY, 0600);
    CHECK(ready >= 0 && close(ready) == 0);
    while (access(argv[2], F_OK) != 0) usleep(2000);
    unsigned long after = taken();
    printf("%lu kB before, %lu kB after\n", before, after);
    CHECK(after <= before + before / 4);

    all_wait();
    look(0);
    all_wait();
    look(0);
    for (int worker = 1, status; worker <= WORKERS; worker++) CHECK(wait(&status) > 0 && status == 0);
    if (!failed) printf("all so\n");
    return failed;
}
