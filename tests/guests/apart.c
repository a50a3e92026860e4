/*
 * What a program without namespaces of its own may do to others, and to files:
 *
 *     apart outside PID FILE SOCKET NAME   each call by which it could reach process PID, file FILE, the socket
 *                                          that is bound to the path SOCKET, or the abstract one NAME
 *     apart inside                         the same calls where they are its own business: all must work
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <pty.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/msg.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

static int worked;

static void tell(const char *what, long result)
{
	if (result >= 0)
		worked++;
	printf("%s %s\n", what, result < 0 ? strerrorname_np(errno) : "ok");
}

static int connect_to(const char *path, int abstract)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	int result;

	strncpy(address.sun_path + abstract, path, sizeof(address.sun_path) - 2);
	result = connect(fd, (void *)&address,
			 offsetof(struct sockaddr_un, sun_path) + abstract + strlen(path));
	if (result)
		close(fd);
	return result ? result : fd;
}

static int outside(pid_t pid, const char *file, const char *path, const char *name)
{
	char byte = 0;
	struct iovec mine = { &byte, 1 }, theirs = { &byte, 1 };
	struct rlimit limit = { 100, 100 };
	struct sched_param parameter = { 0 };
	struct timespec times[2] = { { 1, 0 }, { 1, 0 } };
	cpu_set_t cpus;
	char text[64];
	int fd = open(file, O_RDONLY), flags = 0, pidfd = syscall(SYS_pidfd_open, pid, 0);

	if (fd < 0 || pidfd < 0)
		return 1;
	CPU_ZERO(&cpus);
	CPU_SET(0, &cpus);
	tell("kill", kill(pid, 0));
	tell("tgkill", syscall(SYS_tgkill, pid, pid, 0));
	tell("pidfd_send_signal", syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0));
	tell("pidfd_getfd", syscall(SYS_pidfd_getfd, pidfd, 0, 0));
	tell("ptrace", ptrace(PTRACE_SEIZE, pid, 0, 0));
	tell("process_vm_readv", process_vm_readv(pid, &mine, 1, &theirs, 1, 0));
	snprintf(text, sizeof(text), "/proc/%d/mem", pid);
	tell("mem", open(text, O_RDONLY));
	snprintf(text, sizeof(text), "/proc/%d/environ", pid);
	tell("environ", open(text, O_RDONLY));
	snprintf(text, sizeof(text), "/proc/%d/fd/0", pid);
	tell("fd", open(text, O_RDONLY));
	snprintf(text, sizeof(text), "/proc/%d/root/etc", pid);
	tell("root", open(text, O_RDONLY));
	snprintf(text, sizeof(text), "/proc/%d/oom_score_adj", pid);
	tell("oom_score_adj", open(text, O_WRONLY));
	tell("prlimit", prlimit(pid, RLIMIT_NOFILE, &limit, NULL));
	tell("setaffinity", sched_setaffinity(pid, sizeof(cpus), &cpus));
	tell("setscheduler", sched_setscheduler(pid, SCHED_BATCH, &parameter));
	tell("setpriority", setpriority(PRIO_PROCESS, pid, 19));
	tell("setpriority user", setpriority(PRIO_USER, 0, 19));
	tell("ioprio_set", syscall(SYS_ioprio_set, 1, pid, 3 << 13));
	tell("write", open(file, O_WRONLY));
	tell("truncate", truncate(file, 0));
	tell("unlink", unlink(file));
	tell("rename", rename(file, "mine"));
	tell("link", link(file, "mine"));
	tell("chmod", chmod(file, 0777));
	tell("fchmod", fchmod(fd, 0777));
	tell("chown", chown(file, -1, getgid()));
	tell("fchown", fchown(fd, -1, getgid()));
	tell("utimensat", utimensat(AT_FDCWD, file, times, 0));
	tell("futimens", futimens(fd, times));
	tell("setxattr", setxattr(file, "user.a", "b", 1, 0));
	tell("fsetxattr", fsetxattr(fd, "user.a", "b", 1, 0));
	tell("setflags", ioctl(fd, FS_IOC_SETFLAGS, &flags));
	tell("connect", connect_to(path, 0));
	tell("connect abstract", connect_to(name, 1));
	tell("datagrams", socket(AF_UNIX, SOCK_DGRAM, 0));
	tell("datagram pair", socketpair(AF_UNIX, SOCK_DGRAM, 0, (int[2]){ 0 }));
	tell("inet", socket(AF_INET, SOCK_STREAM, 0));
	tell("netlink", socket(AF_NETLINK, SOCK_RAW, 0));
	tell("shmget", shmget(IPC_PRIVATE, 4096, 0600));
	tell("msgget", msgget(IPC_PRIVATE, 0600));
	tell("mq_open", syscall(SYS_mq_open, "a", O_RDWR | O_CREAT, 0600, NULL));
	tell("clone3", syscall(SYS_clone3, NULL, 0));
	tell("unshare", unshare(CLONE_NEWUSER));
	tell("tiocsti", ioctl(0, TIOCSTI, "x"));
	return worked != 0;
}

static void check(const char *what, int holds)
{
	if (!holds) {
		printf("%s: %s\n", what, strerror(errno));
		exit(1);
	}
}

static int inside(void)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX, .sun_path = "sock" };
	struct timespec times[2] = { { 1, 0 }, { 2, 0 } };
	int fd = open("file", O_RDWR | O_CREAT, 0600), server, client, ends[2];
	struct rlimit limit;
	struct stat stat;
	char byte = 0;
	pid_t child;

	check("open", fd >= 0);
	check("chmod", !chmod("file", 0640) && !fstat(fd, &stat) && (stat.st_mode & 0777) == 0640);
	check("fchmod", !fchmod(fd, 0644) && !fstat(fd, &stat) && (stat.st_mode & 0777) == 0644);
	check("chown", !chown("file", -1, getgid()) && !fchown(fd, getuid(), -1));
	check("utimensat", !utimensat(AT_FDCWD, "file", times, 0) && !fstat(fd, &stat));
	check("its times", stat.st_atime == 1 && stat.st_mtime == 2);
	check("futimens", !futimens(fd, NULL) && !fstat(fd, &stat) && stat.st_mtime > 2);
	check("a bad descriptor", fchmod(99, 0600) == -1 && errno == EBADF);
	check("nothing", chmod("none", 0600) == -1 && errno == ENOENT);
	check("a link", !symlink("file", "link") && !utimensat(AT_FDCWD, "link", times, AT_SYMLINK_NOFOLLOW));
	check("its own time", !lstat("link", &stat) && stat.st_mtime == 2);
	check("a directory", !mkdir("directory", 0700) && !chmod("directory", 0755));
	check("rename", !rename("file", "directory/file") && !link("directory/file", "again"));
	if (!setxattr("again", "user.a", "b", 1, 0))
		check("removexattr", getxattr("again", "user.a", &byte, 1) == 1 && byte == 'b' &&
					     !removexattr("again", "user.a"));
	server = socket(AF_UNIX, SOCK_STREAM, 0);
	check("bind", !bind(server, (void *)&address, sizeof(address)) && !listen(server, 1));
	client = connect_to("sock", 0);
	check("connect", client >= 0 && write(client, "x", 1) == 1);
	check("accept", read(accept(server, NULL, NULL), &byte, 1) == 1 && byte == 'x');
	check("no socket", connect_to("again", 0) == -1 && errno == ECONNREFUSED);
	check("no file", connect_to("none", 0) == -1 && errno == ENOENT);
	check("a pair", !socketpair(AF_UNIX, SOCK_STREAM, 0, ends));
	check("watch", inotify_add_watch(inotify_init(), ".", IN_CREATE) > 0);
	check("limit", !prlimit(getpid(), RLIMIT_NOFILE, NULL, &limit));
	check("priority", !setpriority(PRIO_PROCESS, getpid(), 19));
	check("fork", (child = fork()) >= 0);
	if (!child)
		for (;;)
			pause();
	check("kill", !kill(child, SIGKILL) && waitpid(child, NULL, 0) == child);
	check("openpty", !openpty(&ends[0], &ends[1], NULL, NULL, NULL) && write(ends[1], "a", 1) == 1);
	puts("all works");
	return 0;
}

int main(int argc, char **argv)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (argc == 6 && !strcmp(argv[1], "outside"))
		return outside(atoi(argv[2]), argv[3], argv[4], argv[5]);
	if (argc == 2 && !strcmp(argv[1], "inside"))
		return inside();
	fputs("usage: apart outside PID FILE SOCKET NAME | apart inside\n", stderr);
	return 2;
}
