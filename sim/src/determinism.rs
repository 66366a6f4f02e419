//! Where a process gets randomness and time from the operating system, a simulation gives its own.
//!
//! The functions below stand in for the C library's of the same name, in this crate's programs and tests only. Threads
//! that do not simulate get the system's answers. `std` keys its hash maps once for each thread, so that every seed runs
//! in a thread of its own.
#![allow(unsafe_code, unreachable_pub)]

use std::cell::Cell;

#[derive(Clone, Copy)]
struct Simulated {
    random: u64,
    /// µs since the Unix epoch.
    now: i64,
}

thread_local!(static SIMULATED: Cell<Option<Simulated>> = const { Cell::new(None) });

/// From here on this thread's randomness comes from `seed`, and its clocks stand at `now`, in µs since the Unix epoch.
pub(crate) fn begin(seed: u64, now: i64) {
    SIMULATED.set(Some(Simulated { random: seed, now }));
}

/// Sets this thread's clocks.
pub(crate) fn set_now(now: i64) {
    if let Some(simulated) = SIMULATED.get() {
        SIMULATED.set(Some(Simulated { now, ..simulated }));
    }
}

pub(crate) fn end() {
    SIMULATED.set(None);
}

/// Whether this thread simulates.
pub(crate) fn is_simulating() -> bool {
    SIMULATED.get().is_some()
}

/// # Safety
/// As the C library's: `buffer` holds `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getrandom(buffer: *mut u8, length: usize, flags: u32) -> isize {
    let Some(mut simulated) = SIMULATED.get() else {
        // SAFETY: the arguments are passed on as they came.
        return unsafe { libc::syscall(libc::SYS_getrandom, buffer, length, flags) as isize };
    };
    for at in 0..length {
        let byte = crate::random::mix(&mut simulated.random) as u8;
        // SAFETY: the caller says that `buffer` holds `length` bytes.
        unsafe { buffer.add(at).write(byte) };
    }
    SIMULATED.set(Some(simulated));
    isize::try_from(length).unwrap_or(isize::MAX)
}

/// # Safety
/// As the C library's: `time` may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(clock: libc::clockid_t, time: *mut libc::timespec) -> libc::c_int {
    let clocks = [libc::CLOCK_REALTIME, libc::CLOCK_MONOTONIC, libc::CLOCK_MONOTONIC_COARSE, libc::CLOCK_BOOTTIME];
    let Some(simulated) = SIMULATED.get().filter(|_| clocks.contains(&clock)) else {
        // SAFETY: the arguments are passed on as they came.
        return unsafe { libc::syscall(libc::SYS_clock_gettime, clock, time) as libc::c_int };
    };
    let (seconds, micros) = (simulated.now.div_euclid(1_000_000), simulated.now.rem_euclid(1_000_000));
    // SAFETY: the caller says that `time` may be written.
    unsafe { time.write(libc::timespec { tv_sec: seconds, tv_nsec: micros * 1_000 }) };
    0
}
