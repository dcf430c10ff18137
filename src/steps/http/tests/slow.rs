//! Servers that are slower than a step may be, called by the engine, which limits the time.

use std::sync::Arc;

use futures_util::future::{BoxFuture, FutureExt, ready};

use super::*;
use crate::ledger::memory::MemoryLedger;
use crate::ledger::{ClaimPurpose, RunKey, RunMessage};
use crate::message::{ExchangeNames, Publication, PublishError};
use crate::metrics::StepCounters;
use crate::recovery::ClaimNote;
use crate::steps::claim::claim;
use crate::steps::{
    Claimed, Engine, EventPublisher, RunAccess, RunError, RunInput, StepResources, TraceContext, settings,
};
use crate::wait_budget::WaitBudget;

struct NoPublisher;

impl EventPublisher for NoPublisher {
    fn publish(&self, _: Arc<[Publication]>) -> BoxFuture<'_, Result<(), PublishError>> {
        ready(Err(PublishError::Closed)).boxed()
    }
}

/// Starts a server that reads requests, sends the first bytes of an answer at once and the others one by one, without an end.
async fn slow_server(first: &'static [u8], other: u8) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let _ = stream.read(&mut [0; 4096]).await;
        let _ = stream.write_all(first).await;
        while stream.write_all(&[other]).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    port
}

#[tokio::test]
async fn an_answer_that_comes_too_slowly_is_a_timeout_after_which_the_step_is_undone() {
    const LONG_BODY: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 60000\r\n\r\n\"";
    for (first, other) in [(b"".as_slice(), b'H'), (b"HTTP/1.1 200 OK\r\nx-", b'x'), (LONG_BODY, b'x')] {
        let port = slow_server(first, other).await;
        let step = format!(
            "[[consumers.order.steps]]\nname = \"charge\"\nhttp = {{ url = \"http://127.0.0.1:{port}/\" }}\n\
             undo = {{ http = {{ url = \"http://127.0.0.1:1/\" }} }}\ntimeout = \"200ms\""
        );
        let engine = Engine::new("order", 1, &settings::tests::read(&step).unwrap(), &StepResources::default());
        let message = RunMessage { queue: "order_queue".into(), hash: [1; 32] };
        let key = RunKey { scope: String::new(), identity: "ord-2".to_owned() };
        let (ledger, counters, names) =
            (MemoryLedger::default(), StepCounters::default(), ExchangeNames::new("orders"));
        let access = RunAccess {
            ledger: &ledger,
            publisher: &NoPublisher,
            counters: &counters,
            note: &ClaimNote::default(),
            names: &names,
            waits: &WaitBudget::new(DEADLINE),
            max_hold: DEADLINE,
            may_take_over: &|_| false,
        };
        let input = RunInput {
            key: &key,
            message: &message,
            is_new: true,
            replayed_at: None,
            text: "{}",
            order: None,
            trace: TraceContext::default(),
            retries: 0,
        };
        let Err(RunError::Failed(failure)) = engine.run(input, None, access).await else { panic!("it has failed") };
        assert_eq!((failure.kind, &*failure.code), (FailureKind::TimedOut, "step_timeout"));
        let purpose = ClaimPurpose::Failure { message: message.clone(), failed_at: Timestamp::now(), round: None };
        let waits = WaitBudget::new(DEADLINE);
        let claimed = claim(&ledger, &key, purpose, None, Duration::ZERO, &waits, || {}).await;
        let Ok(Claimed::Run(run, _)) = claimed else { panic!("the run is known") };
        assert!(run.steps[0].uncertain, "it may have had its effect");
    }
}
