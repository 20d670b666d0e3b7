//! Runs a future whose only wake-ups are the disk's replies: on the caller's thread as far as it goes, then on the reader's.
//!
//! So a read that needs one thing after another (index, then page, then blocks) is written in that order, and needs neither a
//! thread that waits nor an executor.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::task::{Context, Wake, Waker};

type Work = Pin<Box<dyn Future<Output = ()> + Send>>;

struct Task {
    work: Mutex<Option<Work>>,
    woken: AtomicBool,
}

/// Polls `work` now, and again whenever it is woken.
pub(crate) fn run(work: impl Future<Output = ()> + Send + 'static) {
    Arc::new(Task { work: Mutex::new(Some(Box::pin(work))), woken: AtomicBool::new(false) }).wake();
}

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        self.woken.store(true, Ordering::SeqCst);
        // Whoever polls it now sees the flag afterwards; a wake from inside the poll comes here, too.
        while self.woken.load(Ordering::SeqCst) {
            let mut work = match self.work.try_lock() {
                Ok(work) => work,
                // A panic while polling has been reported; what is left is not polled again.
                Err(TryLockError::Poisoned(poisoned)) => {
                    *PoisonError::into_inner(poisoned) = None;
                    return;
                }
                Err(TryLockError::WouldBlock) => return,
            };
            if !self.woken.swap(false, Ordering::SeqCst) {
                continue;
            }
            let Some(future) = work.as_mut() else { return };
            let waker = Waker::from(Arc::clone(&self));
            if future.as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
                *work = None;
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use tokio::sync::oneshot;

    #[test]
    fn it_goes_on_where_the_reply_comes_even_if_that_is_at_once() {
        let (done, result) = mpsc::channel();
        let (reply, later) = oneshot::channel();
        run(async move {
            let (now, at_once) = oneshot::channel();
            now.send(1).unwrap();
            let sum = at_once.await.unwrap() + later.await.unwrap();
            done.send(sum).unwrap();
        });
        assert!(result.try_recv().is_err(), "it waits for the reply");
        std::thread::spawn(move || reply.send(2)).join().unwrap().unwrap();
        assert_eq!(result.recv().unwrap(), 3);
    }
}
