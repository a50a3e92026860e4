/*
 * Changes a directory in all the ways there are, holds on to what it has changed, and goes on after a save.
 *
 *     save_overlay        prints "up"; goes on once `go` exists in the directory it was started in, and removes it.
 *                         Prints "all is well" if everything is as it left it. Natively it does the same.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <sys/xattr.h>

static int failed;
#define CHECK(what) do { if (!(what)) { failed = 1; printf("line %d: not so: %s (%s)\n", __LINE__, #what, strerror(errno)); } } while (0)
#define LARGE (300 << 20)
#define PIECE 200000

static void put(const char *path, const char *text) {
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    CHECK(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text) && close(fd) == 0);
}
static int is(const char *path, const char *text) {
    char found[256] = {0};
    int fd = open(path, O_RDONLY);
    if (fd < 0) return 0;
    ssize_t count = read(fd, found, sizeof found - 1);
    close(fd);
    return count == (ssize_t)strlen(text) && !strcmp(found, text);
}
static int reads(int fd, off_t at, const char *text) {
    char found[256] = {0};
    return pread(fd, found, strlen(text), at) == (ssize_t)strlen(text) && !strcmp(found, text);
}
static void date(const char *path, time_t when) {
    struct timespec both[2] = {{when, 123456789}, {when, 987654321}};
    CHECK(utimensat(AT_FDCWD, path, both, AT_SYMLINK_NOFOLLOW) == 0);
}
static int dated(const char *path, time_t when) {
    struct stat st;
    if (lstat(path, &st) != 0) return 0;
    if (st.st_mtim.tv_sec != when || st.st_mtim.tv_nsec != 987654321)
        printf("%s has the time %ld.%09ld\n", path, (long)st.st_mtim.tv_sec, st.st_mtim.tv_nsec);
    return st.st_mtim.tv_sec == when && st.st_mtim.tv_nsec == 987654321;
}
static void copy(const char *from, const char *to) {
    static char all[4 << 20];
    int in = open(from, O_RDONLY), out = open(to, O_WRONLY | O_CREAT | O_TRUNC, 0755);
    ssize_t count = read(in, all, sizeof all);
    CHECK(count > 0 && write(out, all, count) == count && close(in) == 0 && close(out) == 0);
}

/* A program that lies in the layer: ends when its input does. */
static int child(void) {
    char byte;
    return read(0, &byte, 1) == 0 ? 7 : 8;
}

int main(int argc, char **argv) {
    (void)argv;
    if (argc > 1) return child();
    setvbuf(stdout, NULL, _IONBF, 0);
    umask(022);
    static char noise[PIECE];
    for (int i = 0; i < PIECE; i++) noise[i] = (char)(i * 7 + i / 251);

    /* Files of the host: appended to, written into, cut, removed, moved, only touched. */
    int early = open("docs/long", O_RDONLY);
    char *holed = mmap(NULL, 8192, PROT_READ, MAP_PRIVATE, early, 0);
    CHECK(holed != MAP_FAILED && holed[4096] && close(early) == 0);
    /* Its first page cannot be read (MADV_GUARD_INSTALL, for files since Linux 6.15). */
    madvise(holed, 4096, 102);
    int appended = open("src/f1", O_WRONLY | O_APPEND), written = open("docs/long", O_RDWR);
    char *seen = mmap(NULL, 8192, PROT_READ, MAP_PRIVATE, written, 0), then[8192];
    char *cut_off = mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE, open("src/deep/er/g1", O_RDONLY), 0);
    CHECK(seen != MAP_FAILED && cut_off != MAP_FAILED && seen[0] == '1' && seen[4096] && cut_off[0] == 'd');
    put("src/deep/er/g1", "shorter");
    int of_two = open("two/a", O_RDONLY);
    char *two = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, of_two, 0);
    CHECK(two != MAP_FAILED && two[0] == 't' && close(of_two) == 0);
    put("two/a", "one name is left");
    CHECK(unlink("two/b") == 0);
    CHECK(write(appended, "more\n", 5) == 5 && pwrite(written, "CHANGED", 7, 4000) == 7);
    CHECK(lseek(written, 4003, SEEK_SET) == 4003 && truncate("src/f2", 3) == 0);
    CHECK(chmod("src/f4", 0600) == 0 && rename("src/f3", "moved") == 0);
    int removed = open("tool", O_RDWR);
    CHECK(unlink("tool") == 0 && pwrite(removed, "gone but open", 13, 0) == 13);
    int read_only = open("with space/na me", O_RDONLY);
    char *below = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, read_only, 0);
    CHECK(below != MAP_FAILED && below[0] == 'o');

    /* Directories: new, removed, replaced by a new one, closed, left for another. */
    CHECK(mkdir("new", 0755) == 0 && mkdir("new/dir", 0755) == 0 && rmdir("empty") == 0);
    CHECK(unlink("linked/a") == 0 && unlink("linked/b") == 0 && rmdir("linked") == 0);
    CHECK(mkdir("linked", 0750) == 0);
    put("linked/this", "instead");
    CHECK(mkdir("closed", 0700) == 0);
    put("closed/secret", "nobody may read this");
    CHECK(chmod("closed/secret", 0) == 0);

    /* New files: with other names, holes, attributes, of other kinds. */
    put("new/a", "created");
    CHECK(link("new/a", "new/b") == 0 && link("new/a", "src/c") == 0);
    CHECK(symlink("../nowhere", "new/link") == 0 && mkfifo("new/fifo", 0620) == 0);
    CHECK(setxattr("new/a", "user.note", "kept", 4, 0) == 0 || errno == EOPNOTSUPP);
    int large = open("new/large", O_RDWR | O_CREAT, 0640);
    CHECK(ftruncate(large, LARGE) == 0 && pwrite(large, noise, PIECE, LARGE / 2) == PIECE);
    char *shared = mmap(NULL, PIECE, PROT_READ | PROT_WRITE, MAP_SHARED, large, LARGE / 2);
    CHECK(shared != MAP_FAILED);
    memcpy(shared + 100000, "by mapping", 10);
    CHECK(flock(large, LOCK_EX) == 0);
    int unnamed = open("new", O_TMPFILE | O_RDWR, 0644);
    CHECK(unnamed >= 0 || errno == EOPNOTSUPP);
    if (unnamed >= 0) CHECK(write(unnamed, "no name", 7) == 7);
    put("new/short-lived", "short-lived");
    int short_lived = open("new/short-lived", O_RDWR);
    CHECK(unlink("new/short-lived") == 0);

    /* What others meet in it. */
    int pipe_end = open("new/fifo", O_RDWR);
    CHECK(write(pipe_end, "in the fifo", 11) == 11);
    struct sockaddr_un name = {AF_UNIX, "new/socket"};
    int listening = socket(AF_UNIX, SOCK_STREAM, 0);
    CHECK(bind(listening, (void *)&name, sizeof name) == 0 && listen(listening, 1) == 0);
    struct sockaddr_un other = {AF_UNIX, "new/left"};
    int left = socket(AF_UNIX, SOCK_STREAM, 0);
    CHECK(bind(left, (void *)&other, sizeof other) == 0 && close(left) == 0);
    int watch = inotify_init1(IN_NONBLOCK);
    int watched = inotify_add_watch(watch, "new/dir", IN_CREATE);
    CHECK(watched >= 0);
    copy("save_overlay", "new/program");
    int input[2];
    CHECK(pipe(input) == 0);
    pid_t pid = fork();
    if (!pid) {
        dup2(input[0], 0);
        close(input[0]);
        close(input[1]);
        execl("new/program", "new/program", "child", NULL);
        _exit(9);
    }
    close(input[0]);
    CHECK(fcntl(input[1], F_SETFD, FD_CLOEXEC) == 0);

    int go = open(".", O_PATH | O_DIRECTORY);
    CHECK(chdir("new/dir") == 0);
    date("../../src", 1000000001);
    date("../../docs/long", 1000000002);
    date("../../closed", 1000000003);
    date("..", 1000000004);
    date("../link", 1000000005);
    date("../fifo", 1000000006);
    CHECK(chmod("../../closed", 0) == 0);
    memcpy(then, seen, sizeof then);
    char behind[4096];
    memcpy(behind, holed + 4096, sizeof behind);
    char first = cut_off[0], last = cut_off[9], of_both = two[0];
    printf("up\n");
    while (faccessat(go, "go", F_OK, 0) != 0) nanosleep(&(struct timespec){0, 20000000}, NULL);

    CHECK(dated("../../src", 1000000001) && dated("../../docs/long", 1000000002));
    CHECK(dated("../../closed", 1000000003) && dated("..", 1000000004));
    CHECK(dated("../link", 1000000005) && dated("../fifo", 1000000006));
    /* Natively a mapping shows what has been written, in an overlay what was there before. */
    CHECK(!memcmp(then, seen, sizeof then) && cut_off[0] == first && cut_off[9] == last);
    CHECK(!memcmp(behind, holed + 4096, sizeof behind));
    CHECK(two[0] == of_both && is("../../two/a", "one name is left") && access("../../two/b", F_OK) != 0);
    char cwd[4096];
    CHECK(getcwd(cwd, sizeof cwd) && strstr(cwd, "/new/dir"));
    CHECK(write(appended, "and more\n", 9) == 9 && is("../../src/f1", "file 1\nmore\nand more\n"));
    char rest[4];
    CHECK(read(written, rest, 4) == 4 && !memcmp(rest, "NGED", 4));
    CHECK(reads(removed, 0, "gone but open") && access("../../tool", F_OK) != 0);
    struct stat st, again;
    CHECK(fstat(removed, &st) == 0 && st.st_nlink == 0 && (st.st_mode & 07777) == 0755);
    CHECK(below[0] == 'o' && is("../../src/f2", "fil") && is("../../moved", "file 3\n"));
    CHECK(stat("../../src/f4", &st) == 0 && (st.st_mode & 07777) == 0600);
    CHECK(access("../../empty", F_OK) != 0 && access("../../linked/a", F_OK) != 0);
    CHECK(is("../../linked/this", "instead") && stat("../../linked", &st) == 0 && (st.st_mode & 07777) == 0750);
    CHECK(stat("../../closed", &st) == 0 && (st.st_mode & 07777) == 0 && chmod("../../closed", 0700) == 0);
    CHECK(stat("../../closed/secret", &st) == 0 && (st.st_mode & 07777) == 0 && st.st_size == 20);
    CHECK(chmod("../../closed/secret", 0600) == 0 && is("../../closed/secret", "nobody may read this"));
    CHECK(stat("../a", &st) == 0 && stat("../../src/c", &again) == 0);
    CHECK(st.st_nlink == 3 && st.st_ino == again.st_ino && is("../b", "created"));
    char value[16] = {0};
    CHECK(getxattr("../a", "user.note", value, sizeof value) < 0 || !strcmp(value, "kept"));
    CHECK(fstat(large, &st) == 0 && st.st_size == LARGE && st.st_blocks * 512 < LARGE / 2);
    memcpy(noise + 100000, "by mapping", 10);
    CHECK(!memcmp(shared, noise, PIECE));
    memcpy(shared + 50000, "once more", 9);
    CHECK(reads(large, LARGE / 2 + 50000, "once more"));
    int another = open("../large", O_RDONLY);
    CHECK(flock(another, LOCK_SH | LOCK_NB) < 0 && errno == EWOULDBLOCK);
    if (unnamed >= 0) CHECK(reads(unnamed, 0, "no name"));
    CHECK(reads(short_lived, 0, "short-lived") && access("../short-lived", F_OK) != 0);
    char text[16] = {0};
    CHECK(read(pipe_end, text, 11) == 11 && !strcmp(text, "in the fifo"));
    CHECK(chdir("../..") == 0);
    int caller = socket(AF_UNIX, SOCK_STREAM, 0);
    CHECK(connect(caller, (void *)&name, sizeof name) == 0 && accept(listening, NULL, NULL) >= 0);
    CHECK(lstat("new/left", &st) == 0 && S_ISSOCK(st.st_mode));
    put("new/dir/noticed", "");
    char events[4096];
    CHECK(read(watch, events, sizeof events) > 0 && ((struct inotify_event *)events)->wd == watched);
    int status = -1;
    CHECK(close(input[1]) == 0 && waitpid(pid, &status, 0) == pid);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 7);

    /* It can be changed as before. */
    put("docs/new too", "after the save");
    put("src/g", "after the save");
    CHECK(unlink("docs/link") == 0 && rename("new/dir", "new/moved") == 0 && unlink("new/b") == 0);
    CHECK(unlink("new/program") == 0 && unlink("new/socket") == 0 && unlink("new/left") == 0);
    CHECK(munmap(shared, PIECE) == 0 && close(large) == 0 && truncate("new/large", LARGE / 2 + PIECE) == 0);
    CHECK(unlinkat(go, "go", 0) == 0);
    printf(failed ? "something was lost\n" : "all is well\n");
    return failed;
}
