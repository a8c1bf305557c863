/* What the disk holds after a power loss: of each file below POWER_ROOT, a copy below POWER_DISK
   that gets the file's bytes only when they are fsynced, and loses files that were deleted only when
   the folder is fsynced. Preloaded into the process under test. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static void forget_deleted(const char *root, const char *disk) {
    char path[PATH_MAX];
    DIR *folder = opendir(disk);
    for (struct dirent *entry; folder && (entry = readdir(folder));) {
        snprintf(path, sizeof path, "%s/%s", root, entry->d_name);
        if (access(path, F_OK) == 0) continue;
        snprintf(path, sizeof path, "%s/%s", disk, entry->d_name);
        unlink(path);
    }
    if (folder) closedir(folder);
}

static void copy_to_disk(int fd) {
    const char *root = getenv("POWER_ROOT"), *disk = getenv("POWER_DISK");
    char link[64], path[PATH_MAX], target[PATH_MAX];
    static __thread char buffer[1 << 16];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (!root || !disk || length < 0) return;
    path[length] = 0;
    if (strncmp(path, root, strlen(root)) != 0) return;
    struct stat status;
    fstat(fd, &status);
    if (S_ISDIR(status.st_mode)) {
        forget_deleted(root, disk);
        return;
    }
    const char *name = strrchr(path, '/') + 1;
    snprintf(target, sizeof target, "%s/%s", disk, name);
    int out = open(target, O_WRONLY | O_CREAT, 0644);
    if (out < 0) return;
    off_t at = 0;
    ssize_t got;
    while (at < status.st_size && (got = pread(fd, buffer, sizeof buffer, at)) > 0) {
        if (pwrite(out, buffer, got, at) != got) abort();
        at += got;
    }
    if (ftruncate(out, status.st_size) != 0) abort();
    close(out);
}

#define SYNC(name)                                                  \
    int name(int fd) {                                              \
        int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, #name);   \
        int result = real(fd);                                      \
        if (result == 0) copy_to_disk(fd);                          \
        return result;                                              \
    }

SYNC(fsync)
SYNC(fdatasync)
