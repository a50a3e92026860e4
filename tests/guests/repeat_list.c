// cc: -O1
// Lists a directory in every way that there is, and checks that positions, sharing and errors are those of the
// kernel. Prints the names in the order in which they came; with "sorted" as its second argument they must be.
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK(what)                                                                                \
    do {                                                                                           \
        if (!(what)) {                                                                             \
            fprintf(stderr, "line %d: %s (errno %d)\n", __LINE__, #what, errno);                   \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

#define MOST 5000

struct old {
    unsigned long ino;
    unsigned long off;
    unsigned short reclen;
    char name[];
};

struct list {
    int count;
    char *names[MOST];
    unsigned char types[MOST];
    uint64_t positions[MOST];
};

static void add(struct list *list, const char *name, unsigned char type, uint64_t position)
{
    CHECK(list->count < MOST);
    list->names[list->count] = strdup(name);
    list->types[list->count] = type;
    list->positions[list->count++] = position;
}

// One call; how many bytes it gave.
static long once(int fd, int old, void *buffer, size_t room, struct list *list)
{
    long count = syscall(old ? SYS_getdents : SYS_getdents64, fd, buffer, room);
    for (long at = 0; at < count;) {
        if (old) {
            struct old *entry = (struct old *)((char *)buffer + at);
            add(list, entry->name, ((unsigned char *)entry)[entry->reclen - 1], entry->off);
            at += entry->reclen;
        } else {
            struct dirent64 *entry = (struct dirent64 *)((char *)buffer + at);
            add(list, entry->d_name, entry->d_type, entry->d_off);
            at += entry->d_reclen;
        }
    }
    return count;
}

static struct list *all(int fd, int old, size_t room)
{
    struct list *list = calloc(1, sizeof *list);
    char *buffer = malloc(room);
    long count;
    while ((count = once(fd, old, buffer, room, list)) > 0)
        ;
    CHECK(count == 0);
    CHECK(once(fd, old, buffer, room, list) == 0);
    free(buffer);
    return list;
}

static void same(const struct list *a, const struct list *b)
{
    CHECK(a->count == b->count);
    for (int index = 0; index < a->count; index++) {
        CHECK(!strcmp(a->names[index], b->names[index]));
        CHECK(a->types[index] == b->types[index]);
    }
}

static void sharing(const char *path, const struct list *whole)
{
    char buffer[600];
    struct list list = { 0 };
    int fd = open(path, O_RDONLY | O_DIRECTORY), copy = dup(fd), other = open(path, O_RDONLY);
    CHECK(fd >= 0 && copy >= 0 && other >= 0);
    CHECK(once(fd, 0, buffer, sizeof buffer, &list) > 0);
    int first = list.count;
    CHECK(first > 0 && first < whole->count);
    CHECK(once(copy, 0, buffer, sizeof buffer, &list) > 0);
    int second = list.count;
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0)
        _exit(once(fd, 0, buffer, sizeof buffer, &list) > 0 ? list.count - second : 0);
    int status;
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) > 0);
    list.count += WEXITSTATUS(status);
    int third = list.count;
    while (once(copy, 1, buffer, sizeof buffer, &list) > 0)
        ;
    CHECK(list.count == whole->count);
    for (int index = 0; index < list.count; index++)
        CHECK((index >= second && index < third) || !strcmp(list.names[index], whole->names[index]));
    // Another open directory stands where it stood.
    struct list *again = all(other, 0, 4096);
    same(again, whole);
    // To where the position behind a name leads, and back to the beginning.
    CHECK(lseek(fd, whole->positions[first - 1], SEEK_SET) >= 0);
    list.count = 0;
    CHECK(once(copy, 0, buffer, sizeof buffer, &list) > 0);
    CHECK(!strcmp(list.names[0], whole->names[first]));
    CHECK(lseek(copy, 0, SEEK_CUR) == (off_t)list.positions[list.count - 1]);
    CHECK(lseek(fd, 0, SEEK_SET) == 0);
    again = all(copy, 0, 4096);
    same(again, whole);
    close(fd);
    close(copy);
    close(other);
}

static void library(const char *path, const struct list *whole)
{
    DIR *directory = opendir(path);
    CHECK(directory);
    long position = -1;
    struct dirent *entry;
    int index = 0;
    for (; (entry = readdir(directory)); index++) {
        CHECK(index < whole->count && !strcmp(entry->d_name, whole->names[index]));
        if (index == whole->count / 2)
            position = telldir(directory);
    }
    CHECK(index == whole->count);
    seekdir(directory, position);
    entry = readdir(directory);
    CHECK(entry && !strcmp(entry->d_name, whole->names[whole->count / 2 + 1]));
    rewinddir(directory);
    entry = readdir(directory);
    CHECK(entry && !strcmp(entry->d_name, whole->names[0]));
    closedir(directory);
}

static void errors(const char *path)
{
    char buffer[4096];
    int fd = open(path, O_RDONLY);
    CHECK(syscall(SYS_getdents64, -1, buffer, sizeof buffer) == -1 && errno == EBADF);
    CHECK(syscall(SYS_getdents64, fd, buffer, 8) == -1 && errno == EINVAL);
    CHECK(syscall(SYS_getdents64, fd, NULL, sizeof buffer) == -1 && errno == EFAULT);
    char *page = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(syscall(SYS_getdents, fd, page, 4096) == -1 && errno == EFAULT);
    struct list list = { 0 };
    CHECK(once(fd, 0, buffer, sizeof buffer, &list) > 0);
    int handle = open(path, O_PATH);
    CHECK(syscall(SYS_getdents64, handle, buffer, sizeof buffer) == -1 && errno == EBADF);
    int file = open("/proc/self/exe", O_RDONLY);
    CHECK(syscall(SYS_getdents64, file, buffer, sizeof buffer) == -1 && errno == ENOTDIR);
    int ends[2];
    CHECK(pipe(ends) == 0);
    CHECK(syscall(SYS_getdents64, ends[0], buffer, sizeof buffer) == -1 && errno == ENOTDIR);
    CHECK(mkdir("going", 0700) == 0);
    int gone = open("going", O_RDONLY);
    CHECK(gone >= 0 && rmdir("going") == 0);
    CHECK(syscall(SYS_getdents64, gone, buffer, sizeof buffer) == -1 && errno == ENOENT);
}

// A directory is emptied while it is read, and filled.
static void changing(void)
{
    CHECK(mkdir("changing", 0700) == 0);
    char name[64];
    for (int index = 0; index < 2000; index++) {
        snprintf(name, sizeof name, "changing/%d", index * 7919 % 2000);
        CHECK(mknod(name, S_IFREG | 0600, 0) == 0);
    }
    int fd = open("changing", O_RDONLY), removed = 0;
    char buffer[1024];
    struct list list = { 0 };
    while (once(fd, 0, buffer, sizeof buffer, &list) > 0) {
        for (int index = 0; index < list.count; index++) {
            if (list.names[index][0] == '.' || list.names[index][0] == 'n')
                continue;
            CHECK(unlinkat(fd, list.names[index], 0) == 0);
            removed++;
        }
        list.count = 0;
        snprintf(name, sizeof name, "changing/n%d", removed);
        CHECK(mknod(name, S_IFREG | 0600, 0) == 0 && unlink(name) == 0);
    }
    CHECK(removed == 2000);
    CHECK(rmdir("changing") == 0);
}

int main(int argc, char **argv)
{
    CHECK(argc > 1);
    int fd = open(argv[1], O_RDONLY | O_DIRECTORY);
    CHECK(fd >= 0);
    struct list *whole = all(fd, 0, 1 << 16);
    for (int old = 0; old < 2; old++)
        for (size_t room = 300; room < 100000; room *= 7) {
            CHECK(lseek(fd, 0, SEEK_SET) == 0);
            struct list *again = all(fd, old, room);
            same(again, whole);
        }
    for (int index = 0; index < whole->count; index++) {
        printf("%s\n", whole->names[index]);
        if (argc > 2 && index >= 3)
            CHECK(strcmp(whole->names[index - 1], whole->names[index]) < 0);
    }
    sharing(argv[1], whole);
    library(argv[1], whole);
    errors(argv[1]);
    changing();
    return 0;
}
