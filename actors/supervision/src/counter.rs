//! The example kind: a counter that survives its node.
//!
//! Owns: one sum a child. The whole of what a kind has to be, in the fewest lines. Requests and
//! answers are text:
//!
//! | request | answer | effect |
//! |---|---|---|
//! | `add N` (`N` may be negative) | the new sum | `N` |
//! | `get` | the sum | none |
//! | anything else | `error: ` and why | none |
//!
//! Its base is the sum as text.

use bytes::Bytes;

use crate::child::{Checkpoint, Child, ChildError, Context, Handled, Kind, Request, StartError};

/// Starts counters.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counter;

/// One counter.
#[derive(Debug)]
pub struct Sum(i64);

impl Kind for Counter {
    type Child = Sum;

    async fn start(&self, _: Context, checkpoint: Checkpoint) -> Result<Sum, StartError> {
        let mut sum = match &checkpoint.base {
            Some(base) => number(base)?,
            None => 0,
        };
        for step in &checkpoint.steps {
            let too_large = || StartError::BadCheckpoint("the steps overflow the sum".into());
            sum = sum.checked_add(number(step)?).ok_or_else(too_large)?;
        }
        Ok(Sum(sum))
    }
}

impl Child for Sum {
    async fn handle(&mut self, request: Request) -> Result<Handled, ChildError> {
        let text = String::from_utf8_lossy(&request.body);
        let words: Vec<&str> = text.split_whitespace().collect();
        let handled = match words[..] {
            ["get"] => Handled::read(self.0.to_string()),
            ["add", amount] => match amount.parse() {
                Ok(amount) => self.add(amount),
                Err(_) => wrong(&format!("{amount:?} is not a whole number of 64 bits")),
            },
            _ => wrong("a counter understands `add N` and `get`"),
        };
        Ok(handled)
    }

    async fn snapshot(&mut self) -> Result<Bytes, ChildError> {
        Ok(self.0.to_string().into())
    }
}

impl Sum {
    fn add(&mut self, amount: i64) -> Handled {
        let Some(sum) = self.0.checked_add(amount) else {
            return wrong("the sum would not fit 64 bits");
        };
        self.0 = sum;
        Handled::step(sum.to_string(), amount.to_string())
    }
}

fn wrong(why: &str) -> Handled {
    Handled::read(format!("error: {why}"))
}

fn number(bytes: &Bytes) -> Result<i64, StartError> {
    let text = std::str::from_utf8(bytes).ok();
    text.and_then(|text| text.parse().ok())
        .ok_or_else(|| StartError::BadCheckpoint(format!("{bytes:?} is no sum")))
}
