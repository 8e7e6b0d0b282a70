//! What a request may ask the process to do.

use std::{sync::Arc, time::Duration};

use hyper::StatusCode;
use tokio::{
    sync::{
        mpsc::{self, error::TrySendError},
        oneshot,
    },
    time::timeout,
};
use tokio_util::sync::CancellationToken;

/// So many orders wait at the most, so that each is carried out soon or refused at once.
pub const QUEUE: usize = 1;

/// How long a request waits for its order to be carried out.
const PATIENCE: Duration = Duration::from_secs(7);

/// Where what became of an order is sent: what has changed, in words, or why nothing has. It may be
/// that nobody waits for it any more.
pub type Answer = oneshot::Sender<Result<String, String>>;

/// Something that the process shall do.
#[derive(Debug)]
pub enum Order {
    /// Read the config again.
    Reload(Answer),
    /// Take no new clients on this listener.
    Drain {
        /// Its name; there was a listener of this name when the request came.
        listener: Arc<str>,
        /// What became of it.
        answer: Answer,
    },
}

/// Passes an order on, and waits for what becomes of it.
pub(super) async fn give(
    orders: &mpsc::Sender<Order>,
    stopping: &CancellationToken,
    order: impl FnOnce(Answer) -> Order,
) -> (StatusCode, String) {
    const STOPPING: &str = "rolegate is stopping";
    let (status, text) = if stopping.is_cancelled() {
        (StatusCode::SERVICE_UNAVAILABLE, STOPPING.to_owned())
    } else {
        let (answer, answered) = oneshot::channel();
        match orders.try_send(order(answer)) {
            Ok(()) => match timeout(PATIENCE, answered).await {
                Ok(Ok(Ok(done))) => (StatusCode::OK, done),
                Ok(Ok(Err(errors))) => (StatusCode::UNPROCESSABLE_ENTITY, errors),
                Ok(Err(_)) => (StatusCode::SERVICE_UNAVAILABLE, STOPPING.to_owned()),
                Err(_) => {
                    let seconds = PATIENCE.as_secs();
                    let text = format!(
                        "not done after {seconds} s, and still under way: the log says what becomes of it"
                    );
                    (StatusCode::SERVICE_UNAVAILABLE, text)
                }
            },
            Err(TrySendError::Full(_)) => {
                let text = "busy with another order; ask again".to_owned();
                (StatusCode::SERVICE_UNAVAILABLE, text)
            }
            Err(TrySendError::Closed(_)) => (StatusCode::SERVICE_UNAVAILABLE, STOPPING.to_owned()),
        }
    };
    (status, format!("{}\n", text.trim_end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a request gets whose order is answered so; never, if there is no answer.
    async fn answered(answer: Option<Result<String, String>>) -> (u16, String) {
        let (orders, mut ordered) = mpsc::channel(QUEUE);
        let stopping = CancellationToken::new();
        let obey = async {
            let Some(Order::Reload(asked)) = ordered.recv().await else { panic!("no reload") };
            match answer {
                Some(answer) => asked.send(answer).unwrap(),
                None => std::future::pending().await,
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            (status, text) = give(&orders, &stopping, Order::Reload) => (status.as_u16(), text),
            () = obey => unreachable!(),
        }
    }

    #[tokio::test]
    async fn each_outcome_has_its_status() {
        assert_eq!(answered(Some(Ok("x\n".into()))).await, (200, "x\n".into()));
        assert_eq!(answered(Some(Err("a\nb".into()))).await, (422, "a\nb\n".into()));
    }

    #[tokio::test]
    async fn nobody_waits_behind_an_order_or_for_a_process_that_stops() {
        let (orders, mut ordered) = mpsc::channel(QUEUE);
        let stopping = CancellationToken::new();
        let (first, _waits) = oneshot::channel();
        orders.try_send(Order::Reload(first)).unwrap();
        let (status, text) = give(&orders, &stopping, Order::Reload).await;
        assert!(status == 503 && text.contains("busy"), "{text}");
        // The process gives an order up.
        ordered.recv().await.unwrap();
        let (answer, ()) = tokio::join!(give(&orders, &stopping, Order::Reload), async {
            drop(ordered.recv().await);
        });
        assert!(answer.0 == 503 && answer.1.contains("stopping"), "{answer:?}");
        drop(ordered);
        assert_eq!(give(&orders, &stopping, Order::Reload).await.0, 503);
        stopping.cancel();
        assert_eq!(give(&orders, &stopping, Order::Reload).await.0, 503);
    }

    #[tokio::test]
    async fn an_order_that_takes_long_is_not_waited_for() {
        let (status, text) = answered(None).await;
        assert!(status == 503 && text.contains("still under way"), "{text}");
    }
}
