// A program with much memory, which it compares after `go`. Its word says what its copy may not do:
// write (filter), write far (limit), read all of it (closed).
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#define SIZE (80ul << 20)
#define PAGE 4096ul

static uint64_t word_of(uint64_t at) {
    uint64_t x = at * 0x9e3779b97f4a7c15 + 1;
    x ^= x >> 29;
    return x * 0xbf58476d1ce4e5b9;
}

// Every seventh page is zero, every eleventh like its neighbour.
static uint64_t expected(uint64_t at) {
    uint64_t page = at / PAGE;
    if (page % 7 == 3)
        return 0;
    return word_of(page % 11 == 5 ? at - PAGE : at);
}

static int deny_pwrite(void) {
    struct sock_filter program[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_pwrite64, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog filter = {sizeof program / sizeof *program, program};
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter);
}

int main(int count, char **words) {
    const char *what = count > 1 ? words[1] : "";
    char *memory = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return 1;
    for (uint64_t at = 0; at < SIZE; at += 8)
        *(uint64_t *)(memory + at) = expected(at);
    int failed = 0;
    if (!strcmp(what, "filter"))
        failed = deny_pwrite();
    if (!strcmp(what, "limit"))
        failed = setrlimit(RLIMIT_FSIZE, &(struct rlimit){1 << 20, 1 << 20});
    if (!strcmp(what, "closed"))
        failed = mprotect(memory + (10 << 20), 20 << 20, PROT_NONE);
    if (failed)
        return 2;
    close(open("up", O_CREAT | O_WRONLY, 0600));
    while (access("go", F_OK))
        usleep(1000);
    if (!strcmp(what, "closed"))
        failed = mprotect(memory + (10 << 20), 20 << 20, PROT_READ);
    uint64_t wrong = 0;
    for (uint64_t at = 0; at < SIZE; at += 8)
        wrong += *(uint64_t *)(memory + at) != expected(at);
    printf(wrong || failed ? "%lu words are wrong\n" : "all there\n", wrong);
    return wrong != 0;
}
