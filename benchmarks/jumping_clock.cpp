// A clock that jumps, for benchmark `faults`: preloaded, it adds what $JUMPING_CLOCK holds (seconds, int64) to
// the time of day. Monotonic clocks stay as they are, as when a real one is set. What waits until a time of
// day is given to the kernel's clock; a jump does not wake it early, as a real one would.

#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const volatile int64_t *fast = nullptr;
static const time_t TIME_OF_DAY = 1000000000;  // seconds; no monotonic clock has counted so far

__attribute__((constructor)) static void begin() {
    const char *path = getenv("JUMPING_CLOCK");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0) return;
    void *place = mmap(nullptr, sizeof *fast, PROT_READ, MAP_SHARED, file, 0);
    if (place != MAP_FAILED) fast = static_cast<const volatile int64_t *>(place);
    close(file);
}

static int64_t offset() { return fast ? *fast : 0; }

static timespec true_time(const timespec *until) { return {until->tv_sec - offset(), until->tv_nsec}; }

extern "C" {

int clock_gettime(clockid_t clock, timespec *now) noexcept {
    int code = syscall(SYS_clock_gettime, clock, now);
    if (!code && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += offset();
    return code;
}

int gettimeofday(timeval *now, void *) noexcept {
    timespec read;
    clock_gettime(CLOCK_REALTIME, &read);
    *now = {read.tv_sec, read.tv_nsec / 1000};
    return 0;
}

time_t time(time_t *now) noexcept {
    timespec read;
    clock_gettime(CLOCK_REALTIME, &read);
    return now ? *now = read.tv_sec : read.tv_sec;
}

int pthread_cond_timedwait(pthread_cond_t *condition, pthread_mutex_t *mutex, const timespec *until) {
    if (until->tv_sec < TIME_OF_DAY) return pthread_cond_clockwait(condition, mutex, CLOCK_MONOTONIC, until);
    timespec truly = true_time(until);
    return pthread_cond_clockwait(condition, mutex, CLOCK_REALTIME, &truly);
}

int sem_timedwait(sem_t *semaphore, const timespec *until) {
    timespec truly = true_time(until);
    return sem_clockwait(semaphore, CLOCK_REALTIME, &truly);
}

int pthread_mutex_timedlock(pthread_mutex_t *mutex, const timespec *until) noexcept {
    timespec truly = true_time(until);
    return pthread_mutex_clocklock(mutex, CLOCK_REALTIME, &truly);
}
}
