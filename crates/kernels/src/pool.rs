//! A fork-join pool for jobs of about 50 µs.
//!
//! A forward pass is hundreds of short jobs in a row, so what counts is the time from "here is a
//! job" to "every core works on it". The caller takes part; workers spin for tens of microseconds
//! after a job, which covers the gap between two operations of one pass, and then park.
//! A general work-stealing pool was rejected: its wake-up costs more than a small matmul, and its
//! splitting adds nothing where tasks are equal.
//!
//! Each thread has a share of neighbouring tasks and claims them from a counter of its own; who is done helps the others,
//! so a core that is slow or busy elsewhere takes fewer. A small model's weights so stay in the cache of the core that
//! read them the last time, and a large one's are read in one straight line a core. Which thread runs a task never shows
//! in a result: tasks write disjoint outputs.

use std::any::Any;
use std::cell::UnsafeCell;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

use core_affinity::CoreId;

use crate::error::{Error, ErrorKind, Result};

/// How long a worker looks for the next job before it parks.
const SPIN: Duration = Duration::from_micros(60);
/// Spins between two looks at the clock.
const SPINS_PER_LOOK: u32 = 64;

type Task = dyn Fn(usize) + Sync;

/// The tasks that one thread claims first: the next one, and in the upper half the end. They are one number, so that both
/// are of the same job. On a cache line of its own: only who helps touches another thread's.
#[repr(align(64))]
struct Share(AtomicU64);

impl Share {
    fn deal(&self, from: usize, to: usize) {
        self.0.store(((to as u64) << 32) | from as u64, Ordering::Release);
    }

    /// A task that nobody else has.
    fn claim(&self) -> Option<usize> {
        let found = self.0.fetch_add(1, Ordering::AcqRel);
        let (next, end) = (found & u64::from(u32::MAX), found >> 32);
        (next < end).then_some(next as usize)
    }
}

/// The job under way, of one [`Pool::run`] after the other. It stays where it is: to make a new one each time, counted
/// and freed, took longer than a small product. A worker that comes late may claim a task of the next job. That is as
/// good, since it looks at `task` only then.
struct Job {
    task: UnsafeCell<*const Task>,
    shares: Vec<Share>,
    progress: Progress,
}

/// On a cache line of its own: the caller looks at it while others work.
#[repr(align(64))]
struct Progress {
    done: AtomicUsize,
    panicked: AtomicBool,
}

// SAFETY: `task` points to a `Sync` closure. It is read after a claim of the same job and before that task counts as done,
// and written while no task is left that is not done; `Share` and `done` order the two.
unsafe impl Send for Job {}
// SAFETY: as above; every other field is atomic.
unsafe impl Sync for Job {}

impl Job {
    fn new(threads: usize) -> Self {
        let none: &'static Task = &|_| {};
        Self {
            task: UnsafeCell::new(none),
            shares: (0..threads).map(|_| Share(AtomicU64::new(0))).collect(),
            progress: Progress { done: AtomicUsize::new(0), panicked: AtomicBool::new(false) },
        }
    }

    /// Deals out tasks `0..count`.
    ///
    /// # Safety
    /// All tasks dealt before are done, nobody else deals, and `task` lives until these are done.
    unsafe fn deal(&self, count: u32, task: *const Task) {
        self.progress.done.store(0, Ordering::Relaxed);
        self.progress.panicked.store(false, Ordering::Relaxed);
        // SAFETY: no task is left that anybody could have claimed.
        unsafe { *self.task.get() = task };
        let (count, threads) = (count as usize, self.shares.len());
        for (thread, share) in self.shares.iter().enumerate() {
            share.deal(count * thread / threads, count * (thread + 1) / threads);
        }
    }

    /// Works as thread `me` until no task is left to claim.
    fn work(&self, me: usize) {
        let mut done = 0;
        let (before, from) = self.shares.split_at(me);
        for share in from.iter().chain(before) {
            while let Some(index) = share.claim() {
                // SAFETY: `index` is claimed and not done, so the caller still waits in `Pool::run`
                // and the closure that it borrows is alive.
                let task = unsafe { &**self.task.get() };
                if catch_unwind(AssertUnwindSafe(|| task(index))).is_err() {
                    self.progress.panicked.store(true, Ordering::Relaxed);
                }
                done += 1;
            }
        }
        if done > 0 {
            self.progress.done.fetch_add(done, Ordering::Release);
        }
    }

    /// Waits until `count` tasks are done, and says whether one panicked.
    fn finish(&self, count: u32) -> bool {
        let mut spins = 0_u32;
        while self.progress.done.load(Ordering::Acquire) < count as usize {
            spins += 1;
            // A worker that the system took off its core needs this core to go on.
            if spins.is_multiple_of(1 << 10) { thread::yield_now() } else { std::hint::spin_loop() }
        }
        self.progress.panicked.load(Ordering::Relaxed)
    }
}

struct Worker {
    parked: AtomicBool,
    thread: Mutex<Option<Thread>>,
}

struct State {
    /// Counts published jobs; a worker waits for it to change.
    epoch: AtomicUsize,
    job: Job,
    stop: AtomicBool,
    workers: Vec<Worker>,
}

/// Threads that run the tasks of one job at a time, together with the thread that asks.
pub(crate) struct Pool {
    state: Arc<State>,
    handles: Mutex<Vec<JoinHandle<()>>>,
    /// Held while a job runs. A second caller finds it taken and works alone.
    turn: Mutex<()>,
}

/// Ties this thread to a core. Where the system refuses, the thread goes where it is sent: slower, not wrong.
fn tie(core: Option<CoreId>) {
    if let Some(core) = core {
        let _tied = core_affinity::set_for_current(core);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// Starts `threads - 1` workers; the caller of [`Pool::run`] is the last thread.
    pub(crate) fn new(threads: usize) -> Result<Self> {
        Self::on(threads, &[])
    }

    /// [`Pool::new`] with the calling thread and each worker tied to one of `cores`, in turn.
    pub(crate) fn on(threads: usize, cores: &[CoreId]) -> Result<Self> {
        let core = |thread: usize| cores.get(thread % cores.len().max(1)).copied();
        tie(core(0));
        let workers = (1..threads)
            .map(|_| Worker { parked: AtomicBool::new(false), thread: Mutex::new(None) })
            .collect();
        let state = Arc::new(State {
            epoch: AtomicUsize::new(0),
            job: Job::new(threads),
            stop: AtomicBool::new(false),
            workers,
        });
        let pool = Self { state, handles: Mutex::new(Vec::new()), turn: Mutex::new(()) };
        for index in 0..pool.state.workers.len() {
            let state = Arc::clone(&pool.state);
            let core = core(index + 1);
            let handle = thread::Builder::new()
                .name(format!("trefoil-{}", index + 1))
                .spawn(move || {
                    tie(core);
                    state.serve(index);
                })
                .map_err(|e| Error::new(ErrorKind::Unsupported, format!("cannot start a thread: {e}")))?;
            *lock(&pool.state.workers[index].thread) = Some(handle.thread().clone());
            lock(&pool.handles).push(handle);
        }
        Ok(pool)
    }

    pub(crate) fn threads(&self) -> usize {
        self.state.workers.len() + 1
    }

    /// Runs `task(0)` to `task(count - 1)`, each once, and returns when all are done.
    ///
    /// A call from inside a task, or while another thread's job runs, works on the calling thread.
    ///
    /// # Errors
    /// [`ErrorKind::Panicked`] if a task panicked; the other tasks have run.
    pub(crate) fn run(&self, count: usize, task: &(dyn Fn(usize) + Sync)) -> Result<()> {
        let turn = match self.turn.try_lock() {
            Ok(turn) => Some(turn),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        };
        let panicked = match (u32::try_from(count), turn) {
            (Ok(count @ 2..), Some(_turn)) if self.threads() > 1 => self.state.share_out(count, task),
            _ => {
                let tried = (0..count).map(|index| catch_unwind(AssertUnwindSafe(|| task(index))).is_err());
                tried.fold(false, |any, panicked| any | panicked)
            }
        };
        if panicked {
            return Err(Error::new(ErrorKind::Panicked, "a kernel task panicked"));
        }
        Ok(())
    }
}

impl State {
    /// Runs tasks `0..count` on all threads, this one among them, and says whether one panicked. One thread at a time calls
    /// this.
    fn share_out(&self, count: u32, task: &(dyn Fn(usize) + Sync)) -> bool {
        // SAFETY: only the lifetime changes. The reference is used for claimed indices alone, and this function waits for
        // all of them.
        let task = unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static Task>(task) };
        // SAFETY: the caller before waited for its tasks, and this one waits for these.
        unsafe { self.job.deal(count, task) };
        self.epoch.fetch_add(1, Ordering::SeqCst);
        // Waking more workers than there are tasks would only cost.
        for worker in self.workers.iter().take(count as usize - 1) {
            worker.wake();
        }
        self.job.work(0);
        self.job.finish(count)
    }

    fn serve(&self, index: usize) {
        let mut seen = 0;
        while let Some(epoch) = self.wait(seen, &self.workers[index]) {
            seen = epoch;
            self.job.work(index + 1);
        }
    }

    /// The next epoch after `seen`, or nothing when the pool stops.
    fn wait(&self, seen: usize, me: &Worker) -> Option<usize> {
        let start = Instant::now();
        let mut spins = 0;
        loop {
            if self.stop.load(Ordering::SeqCst) {
                return None;
            }
            let epoch = self.epoch.load(Ordering::SeqCst);
            if epoch != seen {
                return Some(epoch);
            }
            spins += 1;
            if spins % SPINS_PER_LOOK != 0 || start.elapsed() < SPIN {
                std::hint::spin_loop();
                continue;
            }
            me.parked.store(true, Ordering::SeqCst);
            // The publisher changes the epoch first and looks at `parked` second; this thread does
            // the opposite, so one of the two sees the other and no wake-up is lost.
            if self.epoch.load(Ordering::SeqCst) == seen && !self.stop.load(Ordering::SeqCst) {
                thread::park();
            }
            me.parked.store(false, Ordering::SeqCst);
        }
    }
}

impl Worker {
    fn wake(&self) {
        if self.parked.load(Ordering::SeqCst)
            && let Some(thread) = lock(&self.thread).as_ref()
        {
            thread.unpark();
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.state.stop.store(true, Ordering::SeqCst);
        for worker in &self.state.workers {
            worker.wake();
        }
        let me = thread::current().id();
        for handle in lock(&self.handles).drain(..) {
            // The last owner may be a task: a thread that joined itself would wait for ever.
            if handle.thread().id() != me {
                let _: std::result::Result<(), Box<dyn Any + Send>> = handle.join();
            }
        }
    }
}

/// A buffer that the tasks of one job write in disjoint parts.
pub(crate) struct Parts<'a, T> {
    start: *mut T,
    len: usize,
    buffer: PhantomData<&'a mut [T]>,
}

// SAFETY: the parts are disjoint by the contract of `part`, so threads never share an element.
unsafe impl<T: Send> Send for Parts<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Parts<'_, T> {}

impl<'a, T> Parts<'a, T> {
    pub(crate) fn new(buffer: &'a mut [T]) -> Self {
        Self { start: buffer.as_mut_ptr(), len: buffer.len(), buffer: PhantomData }
    }

    /// The first of `len` elements at least.
    ///
    /// # Panics
    /// If there are fewer.
    pub(crate) fn start_of(&self, len: usize) -> *mut T {
        assert!(len <= self.len, "{len} elements of {}", self.len);
        self.start
    }

    /// Elements `from..from + len`.
    ///
    /// # Safety
    /// No element of the range may be in another part that is still in use.
    ///
    /// # Panics
    /// If the range leaves the buffer.
    #[expect(clippy::mut_from_ref, reason = "disjointness is the caller's promise")]
    pub(crate) unsafe fn part(&self, from: usize, len: usize) -> &mut [T] {
        assert!(from <= self.len && len <= self.len - from, "part {from}+{len} of {}", self.len);
        // SAFETY: in bounds by the assertion, disjoint by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(from), len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once() {
        for threads in [1, 2, 3, 8] {
            let pool = Pool::new(threads).unwrap();
            for count in [0, 1, 2, 7, 100] {
                for _ in 0..50 {
                    let hits: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
                    pool.run(count, &|i| {
                        hits[i].fetch_add(1, Ordering::Relaxed);
                    })
                    .unwrap();
                    assert!(hits.iter().all(|h| h.load(Ordering::Relaxed) == 1));
                }
            }
        }
    }

    #[test]
    fn a_panic_is_an_error_and_the_pool_survives() {
        let pool = Pool::new(3).unwrap();
        let error = pool.run(16, &|i| assert!(i != 11, "deliberate")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Panicked);
        let sum = AtomicUsize::new(0);
        pool.run(16, &|i| {
            sum.fetch_add(i, Ordering::Relaxed);
        })
        .unwrap();
        assert_eq!(sum.into_inner(), 120);
    }

    #[test]
    fn nested_and_concurrent_calls_finish() {
        let pool = Arc::new(Pool::new(2).unwrap());
        let sum = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        pool.run(4, &|_| {
                            pool.run(3, &|i| {
                                sum.fetch_add(i, Ordering::Relaxed);
                            })
                            .unwrap();
                        })
                        .unwrap();
                    }
                });
            }
        });
        assert_eq!(sum.into_inner(), 4 * 100 * 4 * 3);
    }

    #[test]
    fn parked_workers_wake() {
        let pool = Pool::new(4).unwrap();
        for _ in 0..5 {
            thread::sleep(SPIN * 20);
            let sum = AtomicUsize::new(0);
            pool.run(64, &|i| {
                sum.fetch_add(i, Ordering::Relaxed);
            })
            .unwrap();
            assert_eq!(sum.into_inner(), 64 * 63 / 2);
        }
    }

    #[test]
    fn the_last_owner_may_be_a_task() {
        let pool = Arc::new(Pool::new(2).unwrap());
        let owned = Mutex::new(vec![Arc::clone(&pool)]);
        pool.run(8, &|_| drop(lock(&owned).pop())).unwrap();
    }
}
