/* Says who runs it, so that the same program can tell its story inside the micro-VM and on the host. */
#include <stdio.h>
#include <sys/utsname.h>

int main(void)
{
    struct utsname host;

    if (uname(&host) != 0) {
        perror("hello: uname");
        return 1;
    }
    printf("Hello from a barn that many hands raised. Running on %s %s.\n", host.sysname, host.release);
    return 0;
}
