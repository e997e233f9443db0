/* A disk that fails, for LD_PRELOAD: calls on files below a folder fail from the n-th one on.

   fault_arm("write" | "fsync" | "rename", n, errno, folder) starts counting; fault_count() says how many calls there
   were. Calls on other files are not counted. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char kind[16], root[4096];
static long first = -1, count = 0;
static int number = 0, lasting = 1;

void fault_arm(const char *what, long n, int error, const char *folder, int all_after)
{
    strncpy(kind, what, sizeof kind - 1);
    strncpy(root, folder, sizeof root - 1);
    first = n;
    number = error;
    lasting = all_after;
    count = 0;
}

long fault_count(void) { return count; }

static int below(const char *path) { return first >= 0 && strncmp(path, root, strlen(root)) == 0; }

static int fails(const char *what, const char *path)
{
    if (strcmp(kind, what) != 0 || !below(path))
        return 0;
    count++;
    if (count <= first || (!lasting && count > first + 1))
        return 0;
    errno = number;
    return 1;
}

static int fails_on(const char *what, int descriptor)
{
    char link[64], path[4096];
    ssize_t length;
    if (first < 0)
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    length = readlink(link, path, sizeof path - 1);
    if (length < 0)
        return 0;
    path[length] = 0;
    return fails(what, path);
}

#define REAL(name) __typeof__(&name) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

ssize_t write(int descriptor, const void *data, size_t size)
{
    REAL(write);
    return fails_on("write", descriptor) ? -1 : real(descriptor, data, size);
}

ssize_t pwrite(int descriptor, const void *data, size_t size, off_t offset)
{
    REAL(pwrite);
    return fails_on("write", descriptor) ? -1 : real(descriptor, data, size, offset);
}

ssize_t pwrite64(int descriptor, const void *data, size_t size, off64_t offset)
{
    REAL(pwrite64);
    return fails_on("write", descriptor) ? -1 : real(descriptor, data, size, offset);
}

ssize_t writev(int descriptor, const struct iovec *parts, int n)
{
    REAL(writev);
    return fails_on("write", descriptor) ? -1 : real(descriptor, parts, n);
}

int ftruncate(int descriptor, off_t size)
{
    REAL(ftruncate);
    return fails_on("write", descriptor) ? -1 : real(descriptor, size);
}

int ftruncate64(int descriptor, off64_t size)
{
    REAL(ftruncate64);
    return fails_on("write", descriptor) ? -1 : real(descriptor, size);
}

int fsync(int descriptor)
{
    REAL(fsync);
    return fails_on("fsync", descriptor) ? -1 : real(descriptor);
}

int fdatasync(int descriptor)
{
    REAL(fdatasync);
    return fails_on("fsync", descriptor) ? -1 : real(descriptor);
}

int rename(const char *from, const char *to)
{
    REAL(rename);
    return fails("rename", to) ? -1 : real(from, to);
}

int renameat2(int from_folder, const char *from, int to_folder, const char *to, unsigned int flags)
{
    REAL(renameat2);
    return fails("rename", to) ? -1 : real(from_folder, from, to_folder, to, flags);
}
