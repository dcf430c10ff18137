//! A handler that does what the body of a delivery names.

use super::*;

/// Does what the body of the delivery names.
#[derive(Default)]
pub(super) struct ScriptedHandler {
    pub(super) calls: AtomicUsize,
    /// Deferred log lines that were written.
    pub(super) logged: Arc<AtomicUsize>,
    /// A service that it calls.
    pub(super) service: Option<Gate>,
}

pub(super) fn delay() -> crate::recovery::Delay {
    "10s".parse().unwrap()
}

/// A future of a handler that panics when it is dropped, outside of what a worker catches.
struct PanicsWhenDropped;

impl Future for PanicsWhenDropped {
    type Output = Result<HandlerOutput, HandlerError>;
    fn poll(self: std::pin::Pin<&mut Self>, _: &mut std::task::Context<'_>) -> std::task::Poll<Self::Output> {
        std::task::Poll::Ready(Ok(HandlerOutput::finished(HandlerOutcome::Completed)))
    }
}

impl Drop for PanicsWhenDropped {
    fn drop(&mut self) {
        panic!("kills its worker");
    }
}

impl ScriptedHandler {
    fn log(&self) -> DeferredLog {
        let logged = Arc::clone(&self.logged);
        DeferredLog::new(move || {
            logged.fetch_add(1, Ordering::SeqCst);
        })
    }
}

impl Handler for ScriptedHandler {
    fn handle<'a>(&'a self, input: HandlerInput<'a>) -> BoxFuture<'a, Result<HandlerOutput, HandlerError>> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        let body = std::str::from_utf8(&input.delivery.message.body).unwrap();
        if body == "kill" {
            return Box::pin(PanicsWhenDropped);
        }
        Box::pin(async move {
            let failure = |kind| Err(Failure::new(kind, "scripted", "as scripted").into());
            match body {
                "ok" => Ok(HandlerOutput::finished(HandlerOutcome::Completed)),
                "seen" => Ok(HandlerOutput::finished(HandlerOutcome::Duplicate)),
                "retry" => Ok(HandlerOutput::finished(HandlerOutcome::Retried {
                    consumer: Some("order".into()),
                    delay: delay(),
                })),
                "dead_letter" => Ok(HandlerOutput::finished(HandlerOutcome::DeadLettered {
                    consumer: None,
                    reason: DeadLetterReason::NoOrigin,
                    letter: Arc::default(),
                })),
                "emit" | "emit_both" | "without_copy" | "report" | "invalid_report" => Ok(HandlerOutput {
                    outcome: HandlerOutcome::Completed,
                    report: body.contains("report").then(|| {
                        Box::new(Publication {
                            exchange: "orders".into(),
                            routing_key: body.replace("invalid_report", "report.invalid"),
                            message: Message::default(),
                        })
                    }),
                    emit: ["order.analytics.x", "order.notification.x"][..if body == "emit_both" { 2 } else { 1 }]
                        .iter()
                        .map(|key| Publication {
                            exchange: "orders".into(),
                            routing_key: (*key).to_owned(),
                            message: Message::default(),
                        })
                        .collect(),
                    record: Some(LedgerEntry::LookUpNotification { id: "x".to_owned() }),
                    log: Some(self.log()),
                }),
                "transient" => failure(FailureKind::Transient),
                "permanent" => failure(FailureKind::Permanent),
                "panic" => panic!("as scripted"),
                "look_up" => {
                    input.ledger.record(LedgerEntry::LookUpNotification { id: "x".to_owned() }).await?;
                    Ok(HandlerOutput::finished(HandlerOutcome::Completed))
                }
                "hang" => std::future::pending().await,
                "call" => {
                    let service = self.service.as_ref().unwrap();
                    let _suspended = input.ledger.suspend_deadline();
                    service.opened().await;
                    Ok(HandlerOutput::finished(HandlerOutcome::Completed))
                }
                other => unreachable!("{other}"),
            }
        })
    }

    fn gates(&self) -> Vec<IntakeGate> {
        self.service.clone().map(|gate| IntakeGate::Service(gate.into())).into_iter().collect()
    }

    fn dead_letter_without_copy<'a>(
        &'a self,
        input: HandlerInput<'a>,
        _problem: &'a str,
    ) -> BoxFuture<'a, Result<Option<HandlerOutput>, HandlerError>> {
        let (reason, letter) = (DeadLetterReason::Permanent, Arc::default());
        let outcome = HandlerOutcome::DeadLetteredByBroker { consumer: None, reason, letter };
        // The ledger refuses it.
        let refused =
            LedgerEntry::FinishOrder { id: OrderId::new("never-accepted").unwrap(), at: jiff::Timestamp::UNIX_EPOCH };
        let output = (&*input.delivery.message.body == b"without_copy").then(|| HandlerOutput {
            outcome,
            report: None,
            emit: Arc::default(),
            record: Some(refused),
            log: Some(self.log()),
        });
        Box::pin(std::future::ready(Ok(output)))
    }
}
