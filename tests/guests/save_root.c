// cc: -pthread
/*
 * Root, natively or in belief, whose processes become others and whose files are given away: says what of that is not as
 * it was once it has been saved.
 *
 *     save_root UP GO DIRECTORY...
 *
 * Makes the file UP when all is there, waits for GO, and looks again. DIRECTORIES are made, and files in them; in the first
 * one there is a root directory for one of the processes.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/fsuid.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

enum { CHILDREN = 6, ROOM = 1 << 15 };

static char **places;
static int count;
static const char *self;
/* Open, and without a name. */
static int open_files[4], listening = -1;

#define CHECK(it) ((void)((it) || (fail(__LINE__, #it), 0)))

static void fail(int line, const char *what)
{
	printf("line %d: %s: %s\n", line, what, strerror(errno));
	fflush(stdout);
	_exit(1);
}

struct text {
	char all[ROOM];
	size_t length;
};

static void say(struct text *to, const char *form, ...)
{
	va_list list;
	va_start(list, form);
	to->length += vsnprintf(to->all + to->length, ROOM - to->length, form, list);
	va_end(list);
	CHECK(to->length < ROOM);
}

static void say_stat(struct text *to, const char *name, int result, const struct stat *it)
{
	if (result)
		say(to, "%s: %s\n", name, strerror(errno));
	else
		say(to, "%s: %d:%d %o %lx\n", name, it->st_uid, it->st_gid, it->st_mode, (long)it->st_rdev);
}

static void say_ids(struct text *to)
{
	unsigned real, effective, saved;
	gid_t groups[64];
	getresuid(&real, &effective, &saved);
	say(to, "users %u %u %u %d\n", real, effective, saved, setfsuid(-1));
	getresgid(&real, &effective, &saved);
	say(to, "groups %u %u %u %d:", real, effective, saved, setfsgid(-1));
	int many = getgroups(64, groups);
	for (int at = 0; at < many; at++)
		say(to, " %u", groups[at]);
	struct __user_cap_header_struct head = { _LINUX_CAPABILITY_VERSION_3, 0 };
	struct __user_cap_data_struct sets[2];
	CHECK(syscall(SYS_capget, &head, sets) == 0);
	for (int half = 0; half < 2; half++)
		say(to, "\n%x %x %x", sets[half].effective, sets[half].permitted, sets[half].inheritable);
	say(to, "\nbits %x, kept %d, bounding ", prctl(PR_GET_SECUREBITS), prctl(PR_GET_KEEPCAPS));
	for (int number = 0; number < 41; number++)
		say(to, "%d", prctl(PR_CAPBSET_READ, number));
	say(to, ", ambient ");
	for (int number = 0; number < 41; number++)
		say(to, "%d", prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, number, 0, 0));
	say(to, "\n");
}

static void say_files(struct text *to)
{
	static const char *names[] = { "plain", "link", "fifo", "socket", "directory", "null", "gone" };
	char path[4096];
	struct stat it;
	for (int place = 0; place < count; place++)
		for (int name = 0; name < 7; name++) {
			snprintf(path, sizeof path, "%s/%s", places[place], names[name]);
			int result = lstat(path, &it);
			say_stat(to, path, result, &it);
		}
	for (int at = 0; at < 4; at++) {
		int result = fstat(open_files[at], &it);
		say_stat(to, "open", result, &it);
	}
}

/* What this program is when it has been executed once more. */
static void say_executed(struct text *to)
{
	int ends[2];
	CHECK(pipe(ends) == 0);
	pid_t child = fork();
	if (child == 0) {
		dup2(ends[1], 1);
		execl("/proc/self/exe", self, "ids", NULL);
		_exit(9);
	}
	close(ends[1]);
	char read_in[4096];
	ssize_t length;
	while ((length = read(ends[0], read_in, sizeof read_in)) > 0)
		say(to, "%.*s", (int)length, read_in);
	int status;
	waitpid(child, &status, 0);
	say(to, "status %d\n", status);
	close(ends[0]);
}

static void *other(void *to)
{
	static int turn;
	/* This thread alone, not those of the C library's. */
	if (!turn++)
		CHECK(syscall(SYS_setresuid, 40, 41, 42) == 0);
	say_ids(to);
	return NULL;
}

static struct text thread_text[2];
static pthread_barrier_t barrier;

static void *stays(void *none)
{
	other(&thread_text[0]);
	pthread_barrier_wait(&barrier);
	pthread_barrier_wait(&barrier);
	other(&thread_text[1]);
	return none;
}

/* Each child becomes somebody. */
static void become(int child)
{
	gid_t groups[] = { 7, 8 };
	struct __user_cap_header_struct head = { _LINUX_CAPABILITY_VERSION_3, 0 };
	struct __user_cap_data_struct sets[2];
	switch (child) {
	case 0:
		CHECK(setgroups(2, groups) == 0 && setgid(34) == 0 && setuid(33) == 0);
		CHECK(setuid(0) == -1);
		break;
	case 1:
		CHECK(setresgid(1, 2, 3) == 0 && setresuid(0, 5, 6) == 0);
		break;
	case 2:
		CHECK(prctl(PR_SET_KEEPCAPS, 1) == 0 && setuid(9) == 0);
		CHECK(syscall(SYS_capget, &head, sets) == 0);
		sets[0].inheritable = sets[0].effective = sets[0].permitted &= ~(1 << CAP_MKNOD);
		CHECK(syscall(SYS_capset, &head, sets) == 0);
		CHECK(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_CHOWN, 0, 0) == 0);
		CHECK(prctl(PR_CAPBSET_DROP, CAP_FOWNER) == 0);
		break;
	case 3:
		CHECK(prctl(PR_SET_SECUREBITS, 1 << 2 | 1 << 3) == 0 && setuid(70) == 0 && setfsuid(71) == 70);
		break;
	}
}

/* Lives in a root directory of its own. */
static void in_a_cell(struct text *to)
{
	struct stat it;
	char path[4096];
	say_ids(to);
	say_stat(to, "/", stat("/", &it), &it);
	say_stat(to, "/room/own", stat("/room/own", &it), &it);
	say_stat(to, "own", stat("own", &it), &it);
	int result = stat("/../../../../plain", &it);
	say(to, "%d %s\n", result, getcwd(path, sizeof path));
	struct sockaddr_un name = { 0 };
	socklen_t length = sizeof name;
	CHECK(getsockname(listening, (struct sockaddr *)&name, &length) == 0);
	say(to, "%s\n", name.sun_path);
	say_stat(to, "the socket", lstat("/socket", &it), &it);
}

static void enter_cell(void)
{
	struct sockaddr_un name = { .sun_family = AF_UNIX, .sun_path = "/socket" };
	CHECK(chroot("cell") == 0 && chdir("/room") == 0);
	close(open("own", O_CREAT | O_WRONLY, 0644));
	CHECK(chown("own", 12, 13) == 0);
	listening = socket(AF_UNIX, SOCK_STREAM, 0);
	CHECK(bind(listening, (struct sockaddr *)&name, sizeof name) == 0 && listen(listening, 5) == 0);
	CHECK(chown("/socket", 14, 15) == 0);
	CHECK(setgid(21) == 0 && setuid(20) == 0);
}

static void serve(void)
{
	char byte;
	int connection = accept(listening, NULL, NULL);
	CHECK(connection >= 0 && read(connection, &byte, 1) == 1 && write(connection, &byte, 1) == 1);
	close(connection);
}

static void child(int number, int ready, int go)
{
	static struct text before, after;
	pthread_t thread;
	char byte = 0;
	if (number == 4) {
		pthread_barrier_init(&barrier, NULL, 2);
		CHECK(pthread_create(&thread, NULL, stays, NULL) == 0);
		pthread_barrier_wait(&barrier);
	} else if (number == 5) {
		CHECK(chdir(places[0]) == 0);
		enter_cell();
	} else {
		become(number);
	}
	void (*look)(struct text *) = number == 5 ? in_a_cell : say_ids;
	look(&before);
	if (number < 4)
		say_executed(&before);
	if (number == 5) {
		CHECK(write(ready, &byte, 1) == 1);
		serve();
	} else {
		CHECK(write(ready, &byte, 1) == 1);
	}
	CHECK(read(go, &byte, 1) == 0);
	look(&after);
	if (number < 4)
		say_executed(&after);
	if (number == 4) {
		pthread_barrier_wait(&barrier);
		pthread_join(thread, NULL);
		CHECK(strcmp(thread_text[0].all, thread_text[1].all) == 0);
	}
	if (number == 5)
		serve();
	if (strcmp(before.all, after.all) != 0) {
		printf("child %d was\n%s\nand is\n%s\n", number, before.all, after.all);
		fflush(stdout);
		_exit(1);
	}
	_exit(0);
}

static void make_files(const char *place)
{
	struct sockaddr_un name = { .sun_family = AF_UNIX, .sun_path = "socket" };
	int here = open(".", O_DIRECTORY), made = socket(AF_UNIX, SOCK_DGRAM, 0);
	CHECK(mkdir(place, 0755) == 0 && chdir(place) == 0);
	close(open("plain", O_CREAT | O_WRONLY, 0644));
	CHECK(chown("plain", 5, 6) == 0 && chmod("plain", 04755) == 0);
	CHECK(symlink("nowhere", "link") == 0 && lchown("link", 7, 8) == 0);
	CHECK(mkfifo("fifo", 0600) == 0 && chown("fifo", 9, 10) == 0);
	CHECK(bind(made, (struct sockaddr *)&name, sizeof name) == 0 && chown("socket", 11, 12) == 0);
	CHECK(mkdir("directory", 0700) == 0 && chown("directory", 13, 14) == 0 && chmod("directory", 02750) == 0);
	CHECK(mknod("null", S_IFCHR | 0666, makedev(1, 3)) == 0 && chown("null", 0, 15) == 0);
	CHECK(fchdir(here) == 0);
	close(here);
}

static void open_some(void)
{
	char path[4096];
	int ends[2];
	snprintf(path, sizeof path, "%s/gone", places[0]);
	open_files[0] = open(path, O_CREAT | O_RDWR, 0640);
	CHECK(unlink(path) == 0 && pipe(ends) == 0);
	open_files[1] = ends[0];
	open_files[2] = memfd_create("it", 0);
	open_files[3] = socket(AF_UNIX, SOCK_STREAM, 0);
	for (int at = 0; at < 4; at++)
		CHECK(fchown(open_files[at], 50 + at, 60 + at) == 0);
}

static void ask_cell(void)
{
	struct sockaddr_un name = { .sun_family = AF_UNIX };
	char byte = 7;
	int asks = socket(AF_UNIX, SOCK_STREAM, 0);
	snprintf(name.sun_path, sizeof name.sun_path, "%s/cell/socket", places[0]);
	CHECK(connect(asks, (struct sockaddr *)&name, sizeof name) == 0);
	CHECK(write(asks, &byte, 1) == 1 && read(asks, &byte, 1) == 1);
	close(asks);
}

int main(int argc, char **argv)
{
	static struct text before, after;
	static char path[4096];
	int ready[2], go[2];
	char byte;
	if (argc == 2) {
		say_ids(&before);
		return printf("%s", before.all) < 0;
	}
	if (argc < 4)
		return 2;
	self = argv[0];
	places = argv + 3;
	count = argc - 3;
	umask(022);
	for (int at = 0; at < count; at++)
		make_files(places[at]);
	snprintf(path, sizeof path, "%s/cell", places[0]);
	CHECK(mkdir(path, 0755) == 0);
	strcat(path, "/room");
	CHECK(mkdir(path, 0755) == 0);
	open_some();
	CHECK(pipe(ready) == 0 && pipe(go) == 0);
	for (int number = 0; number < CHILDREN; number++)
		if (fork() == 0) {
			close(go[1]);
			child(number, ready[1], go[0]);
		}
	for (int number = 0; number < CHILDREN; number++)
		CHECK(read(ready[0], &byte, 1) == 1);
	ask_cell();
	say_ids(&before);
	say_files(&before);
	close(open(argv[1], O_CREAT | O_WRONLY, 0666));
	while (access(argv[2], F_OK) != 0)
		usleep(10000);
	say_ids(&after);
	say_files(&after);
	close(go[1]);
	ask_cell();
	int failed = strcmp(before.all, after.all) != 0;
	if (failed)
		printf("it was\n%s\nand is\n%s\n", before.all, after.all);
	for (int number = 0; number < CHILDREN; number++) {
		int status;
		CHECK(wait(&status) > 0);
		failed |= status != 0;
	}
	if (failed)
		return 1;
	printf("all so\n");
	return 0;
}
