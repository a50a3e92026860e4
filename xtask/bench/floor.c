/*
 * The kernel's floor: what one trapped system call costs when nothing but the kernel's own
 * mechanism is paid for.
 *
 *     floor [--session] PROG ARGS...
 *
 * Runs PROG behind a seccomp filter that traps syslog(2) and nothing else, and answers each trap
 * with one number from one thread: RECV, SEND, RECV, SEND. It decodes nothing, keeps no books and
 * knows no guest. The flags are those that the sandbox itself uses, so that the two differ only by
 * the work of the engine and by the guest's session, which a sandbox gives it as a wall; with
 * --session PROG has one of its own here too:
 *
 *   - SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV (Linux 5.19), seccomp(2);
 *   - SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP (Linux 6.6), kernel/seccomp.c seccomp_notify_set_flags().
 *
 * A flag that the kernel refuses is left out, and a line on stderr says so. Exits with the status
 * of PROG, 128+N where signal N ended it, 125 for an error of its own.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* Headers older than the running kernel lack these (include/uapi/linux/seccomp.h). */
#ifndef SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
#define SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV (1UL << 5)
#endif
#ifndef SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP
#define SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP (1UL << 0)
#endif
#ifndef SECCOMP_IOCTL_NOTIF_SET_FLAGS
#define SECCOMP_IOCTL_NOTIF_SET_FLAGS SECCOMP_IOW(4, __u64)
#endif

#if defined(__x86_64__)
#define NATIVE_ARCHITECTURE AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define NATIVE_ARCHITECTURE AUDIT_ARCH_AARCH64
#else
#error "floor.c knows x86_64 and aarch64"
#endif

/* What every trap is answered with: the size of some kernel log. */
#define ANSWER (1 << 18)

static pid_t guest;
/* Whether the guest gets a session of its own; set before it is made. */
static int own_session;

static void fail(const char *what)
{
	dprintf(2, "floor: %s: %s\n", what, strerror(errno));
	_exit(125);
}

/*
 * Ends the supervisor from the signal handler itself: RECV on a listener without users returns
 * only from Linux 6.11 on, and a flag that the loop tests would be set too late between the test
 * and the call.
 */
static void guest_changed(int signal)
{
	int status;

	(void)signal;
	if (waitpid(guest, &status, WNOHANG) != guest)
		return;
	_exit(WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
}

static int load_filter(void)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, NATIVE_ARCHITECTURE, 1, 0),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_syslog, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { sizeof(code) / sizeof(code[0]), code };
	unsigned long flags = SECCOMP_FILTER_FLAG_NEW_LISTENER;
	long listener;

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		fail("cannot set no_new_privs");
	listener = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER,
			   flags | SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV, &program);
	if (listener < 0 && errno == EINVAL) {
		dprintf(2, "floor: without SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV\n");
		listener = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &program);
	}
	if (listener < 0)
		fail("cannot load the filter");
	return (int)listener;
}

/* The ancillary data of one descriptor, aligned as cmsg(3) asks. */
union ancillary {
	struct cmsghdr header;
	char space[CMSG_SPACE(sizeof(int))];
};

static void send_descriptor(int channel, int descriptor)
{
	char byte = 0;
	struct iovec data = { &byte, 1 };
	union ancillary ancillary = { .space = { 0 } };
	struct msghdr message = { .msg_iov = &data, .msg_iovlen = 1,
				  .msg_control = &ancillary,
				  .msg_controllen = sizeof(ancillary) };
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);

	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_RIGHTS;
	header->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(header), &descriptor, sizeof(int));
	if (sendmsg(channel, &message, 0) != 1)
		fail("cannot hand the listener over");
}

static int receive_descriptor(int channel)
{
	char byte;
	struct iovec data = { &byte, 1 };
	union ancillary ancillary;
	struct msghdr message = { .msg_iov = &data, .msg_iovlen = 1,
				  .msg_control = &ancillary,
				  .msg_controllen = sizeof(ancillary) };
	struct cmsghdr *header;
	int descriptor;
	ssize_t got;

	do
		got = recvmsg(channel, &message, MSG_CMSG_CLOEXEC);
	while (got < 0 && errno == EINTR);
	header = got == 1 ? CMSG_FIRSTHDR(&message) : NULL;
	if (!header || header->cmsg_type != SCM_RIGHTS) {
		dprintf(2, "floor: the guest ended before it sent its listener\n");
		_exit(125);
	}
	memcpy(&descriptor, CMSG_DATA(header), sizeof(int));
	return descriptor;
}

static void become_guest(int channel, pid_t supervisor, char **argv)
{
	int listener;

	if (prctl(PR_SET_PDEATHSIG, SIGKILL) || getppid() != supervisor)
		fail("cannot die with the supervisor");
	/*
	 * With sched_autogroup_enabled a session is a group of the scheduler's, and a switch between
	 * two groups costs more than one within a group (kernel/sched/autogroup.c).
	 */
	if (own_session && setsid() < 0)
		fail("cannot start a session");
	listener = load_filter();
	send_descriptor(channel, listener);
	/* A guest that held its own listener would keep it alive. */
	close(listener);
	close(channel);
	execvp(argv[0], argv);
	dprintf(2, "floor: cannot run %s: %s\n", argv[0], strerror(errno));
	_exit(127);
}

static void serve(int listener)
{
	/* The kernel's structures may be larger than those compiled in: SECCOMP_GET_NOTIF_SIZES. */
	struct seccomp_notif_sizes sizes;
	struct seccomp_notif_resp *response;
	struct seccomp_notif *request;
	size_t request_size, response_size;

	if (syscall(SYS_seccomp, SECCOMP_GET_NOTIF_SIZES, 0, &sizes))
		fail("cannot ask for the sizes of a notification");
	request_size = sizes.seccomp_notif > sizeof(*request) ? sizes.seccomp_notif : sizeof(*request);
	response_size = sizes.seccomp_notif_resp > sizeof(*response) ? sizes.seccomp_notif_resp
								     : sizeof(*response);
	request = calloc(1, request_size);
	response = calloc(1, response_size);
	if (!request || !response)
		fail("cannot allocate a notification");
	response->val = ANSWER;

	for (;;) {
		/* RECV refuses a buffer that is not zeroed (seccomp_notify_recv()). */
		memset(request, 0, request_size);
		if (ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, request)) {
			/* ENOENT: the task died first, or no task is left and SIGCHLD is due. */
			if (errno == EINTR || errno == ENOENT)
				continue;
			fail("cannot receive a notification");
		}
		response->id = request->id;
		/* ENOENT: the task died meanwhile. */
		if (ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, response) && errno != ENOENT &&
		    errno != EINTR)
			fail("cannot answer a notification");
	}
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_handler = guest_changed, .sa_flags = SA_NOCLDSTOP };
	sigset_t child_signal, before;
	pid_t supervisor = getpid();
	int channel[2];
	int listener;

	if (argc > 1 && !strcmp(argv[1], "--session")) {
		own_session = 1;
		argv++;
		argc--;
	}
	if (argc < 2) {
		dprintf(2, "usage: floor [--session] PROG ARGS...\n");
		return 125;
	}
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, channel))
		fail("cannot make a socket pair");

	/* Blocked until `guest` is known, which the handler reads. */
	sigemptyset(&child_signal);
	sigaddset(&child_signal, SIGCHLD);
	sigprocmask(SIG_BLOCK, &child_signal, &before);
	if (sigaction(SIGCHLD, &action, NULL))
		fail("cannot watch the guest");

	guest = fork();
	if (guest < 0)
		fail("cannot fork");
	if (guest == 0) {
		sigprocmask(SIG_SETMASK, &before, NULL);
		become_guest(channel[1], supervisor, argv + 1);
	}
	close(channel[1]);
	sigprocmask(SIG_SETMASK, &before, NULL);

	listener = receive_descriptor(channel[0]);
	close(channel[0]);
	if (ioctl(listener, SECCOMP_IOCTL_NOTIF_SET_FLAGS, SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP))
		dprintf(2, "floor: without SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP\n");
	serve(listener);
}
