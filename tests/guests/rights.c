/*
 * Says which rights it has; `rights raise` first tries to get more.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <linux/capability.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

static const char *said(long result)
{
	if (result == 0)
		return "0";
	return errno == EPERM ? "EPERM" : errno == EINVAL ? "EINVAL" : strerror(errno);
}

static void raise_rights(void)
{
	struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
	struct __user_cap_data_struct all[2];

	memset(all, 0xff, sizeof all);
	all[1].effective = all[1].permitted = all[1].inheritable = 0x1ff;
	printf("capset %s\n", said(syscall(SYS_capset, &header, all)));
	printf("ambient %s\n", said(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_SYS_ADMIN, 0, 0)));
	printf("clear no_new_privs %s\n", said(prctl(PR_SET_NO_NEW_PRIVS, 0, 0, 0, 0)));
	printf("securebits %s\n", said(prctl(PR_SET_SECUREBITS, 0x20, 0, 0, 0)));
}

int main(int argc, char **argv)
{
	struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
	struct __user_cap_data_struct data[2];

	if (argc == 2 && !strcmp(argv[1], "raise"))
		raise_rights();
	if (syscall(SYS_capget, &header, data))
		return 1;
	printf("euid %d\n", (int)geteuid());
	printf("effective %08x%08x\n", data[1].effective, data[0].effective);
	printf("permitted %08x%08x\n", data[1].permitted, data[0].permitted);
	printf("no_new_privs %d\n", prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0));
	return 0;
}
