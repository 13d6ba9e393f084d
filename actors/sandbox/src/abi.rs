//! How an export is called: numbers, or bytes through the guest's own memory.
//!
//! Owns: the calling convention, the bounds of everything that a guest points at, and what its failures
//! are called. Never copies a request or an answer more than once, and never trusts a pointer.
//!
//! **Numbers.** Any export whose parameters and results are `i32`, `i64`, `f32` or `f64` is called with
//! a JSON array of numbers and answers with one. What JSON cannot write is the string `"NaN"`, `"inf"`
//! or `"-inf"`.
//!
//! **Bytes.** The guest exports `us_alloc(len: i32) -> i32` (or `malloc`), and the export has one of two
//! forms:
//!
//! ```text
//! (ptr: i32, len: i32) -> (result: i32, error_code: i32, error_message_ptr: i32)
//! (ret: i32, ptr: i32, len: i32)            the same three, as little-endian u32 written to ret..ret+12
//! ```
//!
//! The second is what a C compiler makes of a function that returns a struct of three words. The request
//! lies at `ptr`, which is 0 if it is empty. With `error_code` 0, `result` is 0 (an empty answer) or
//! points at a little-endian `u32`, the answer's length, with the answer behind it. With any other
//! `error_code` the call has failed in the guest's own judgement, which is an ordinary ending: what it
//! changed stays changed. `error_message_ptr` is then 0 or points at text that ends in a zero byte. Codes
//! 2, 13 and 28 have names: [`Failure`].
//!
//! The host gives the request and the return area back through `us_free(ptr: i32, len: i32)` or
//! `free(ptr: i32)` if there is one. The answer and the message stay the guest's, which may use the place
//! again in its next call.

use std::mem;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use wasmtime::{AsContextMut, Func, Trap, TypedFunc, Val, ValType, WasmBacktrace};

use crate::instance::{Host, Instance, OutOfSlices};
use crate::rewrite::RESERVED;
use crate::wasi::{Exhausted, Exit};

/// How long a guest's message may be; what is beyond is cut off. It is for people.
const MAX_MESSAGE: usize = 4 << 10;

/// How large an answer may be: what a reply may carry (1 MiB), less a line of JSON with what the guest
/// wrote.
pub const MAX_ANSWER: usize = (1 << 20) - (128 << 10);

/// How many frames of a backtrace are told.
const MAX_FRAMES: usize = 32;

/// How much of a function's name is told, in bytes: compilers write whole types into them.
const MAX_NAME: usize = 256;

/// How many arguments a call of numbers may have.
const MAX_ARGUMENTS: usize = 64;

/// How many exports of one instance are remembered: a guest has few that are called again and again, and
/// what is not remembered is looked up.
const MAX_KNOWN: usize = 32;

/// The size of the area into which a guest writes its three words.
const RETURN_AREA: u32 = 12;

const ALLOCATORS: [&str; 2] = ["us_alloc", "malloc"];
const START: &str = "_start";

/// With what an export is called.
#[derive(Clone, Copy, Debug)]
pub enum Args<'a> {
    /// Numbers, one a parameter.
    Numbers(&'a [Value]),
    /// Bytes, through the guest's memory.
    Bytes(&'a [u8]),
}

/// How a call ended that the guest itself brought to its end.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome<'a> {
    /// Its results.
    Numbers(Vec<Value>),
    /// Its answer, still in its memory.
    Bytes(&'a [u8]),
    /// It says that it failed. What it changed stays changed.
    Failed {
        /// Its code.
        code: u32,
        /// Its words, which may be empty.
        message: String,
    },
}

/// What an error code of a guest is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// 2, `ENOENT`.
    NotFound,
    /// 13, `EACCES`.
    PermissionDenied,
    /// 28, `ENOSPC`.
    OutOfMemory,
    /// Any other: the guest's own.
    Other,
}

impl Failure {
    /// Of an error code.
    pub fn of(code: u32) -> Failure {
        match code {
            2 => Failure::NotFound,
            13 => Failure::PermissionDenied,
            28 => Failure::OutOfMemory,
            _ => Failure::Other,
        }
    }

    /// A word for machines.
    pub fn name(self) -> &'static str {
        match self {
            Failure::NotFound => "NotFound",
            Failure::PermissionDenied => "PermissionDenied",
            Failure::OutOfMemory => "OutOfMemory",
            Failure::Other => "Other",
        }
    }
}

/// Why a call did not end by itself. After the first five nothing has run and the instance is as
/// before; after the others it is spent, and whoever keeps a checkpoint goes on from that.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// There is no such function.
    #[error("there is no export {0:?} that is a function")]
    NoExport(String),
    /// The function is not one that can be called like this.
    #[error("the export {export:?} cannot be called like this: it is {found}")]
    Signature {
        /// Which.
        export: String,
        /// What it takes and gives.
        found: String,
    },
    /// The arguments do not fit the function.
    #[error("{0}")]
    Arguments(String),
    /// As many instances live as may.
    #[error("as many guests run here as may: try again")]
    Crowded,
    /// An earlier call left the instance half done.
    #[error("the instance is spent")]
    Spent,
    /// The guest did something that it may not, or ran into an `unreachable` of its own.
    #[error("the guest trapped in {}: {}", .0.function, .0.message)]
    Trapped(Box<GuestTrap>),
    /// All of its slices are used up.
    #[error("the guest used up all the slices of its call")]
    OutOfTime,
    /// It used up what the host does for one call.
    #[error(transparent)]
    HostLimit(Exhausted),
    /// It took too long by the clock.
    #[error("the guest took longer than {0:?}")]
    Late(Duration),
    /// It ended its own program.
    #[error("the guest exited with the code {0}")]
    Exited(i32),
    /// It pointed at what does not lie in its memory.
    #[error("the guest's {what} is at {pointer}, {length} bytes long, in a memory of {memory}")]
    OutOfBounds {
        /// What it pointed at.
        what: &'static str,
        /// Where, in bytes.
        pointer: u32,
        /// How long, in bytes.
        length: u32,
        /// How large its memory is, in bytes.
        memory: u64,
    },
    /// Its answer is larger than a reply may be.
    #[error("the guest's answer of {0} bytes is larger than {MAX_ANSWER}")]
    AnswerTooLarge(u32),
    /// Its allocator had no room for the request.
    #[error("the guest has no memory for a request of {0} bytes")]
    NoMemory(u32),
    /// The engine failed, which is nobody's fault but ours.
    #[error("the engine failed: {0}")]
    Engine(String),
}

/// A trap, with where it happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestTrap {
    /// What happened.
    pub message: String,
    /// In which function: its name, or its number.
    pub function: String,
    /// The functions on the stack, innermost first.
    pub backtrace: Vec<String>,
}

impl CallError {
    /// A word for machines: a type of error of the HTTP interface.
    pub fn code(&self) -> &'static str {
        match self {
            CallError::NoExport(_) => "not_found",
            CallError::Signature { .. } | CallError::Arguments(_) => "invalid",
            CallError::Crowded => "overloaded",
            CallError::OutOfTime | CallError::Late(_) => "deadline_exceeded",
            CallError::HostLimit(_) | CallError::NoMemory(_) | CallError::AnswerTooLarge(_) => {
                "quota_exceeded"
            }
            CallError::Trapped(_) | CallError::Exited(_) | CallError::OutOfBounds { .. } => {
                "guest_trapped"
            }
            CallError::Spent | CallError::Engine(_) => "unavailable",
        }
    }
}

/// What was looked up of one instance: names are found and types checked once, not once a call.
#[derive(Default)]
pub(crate) struct Exports {
    known: Vec<Arc<Export>>,
    /// None until bytes are to be handed over.
    room: Option<Arc<Room>>,
    /// The place of a call's arguments and results, empty while one is carried out.
    values: Vec<Val>,
}

/// A function that was called before.
struct Export {
    name: String,
    function: Func,
    params: Vec<ValType>,
    results: usize,
    takes_numbers: bool,
    /// Its form, if it is one that takes bytes.
    form: Option<Form>,
}

enum Form {
    Returns(TypedFunc<(u32, u32), (u32, u32, u32)>),
    Writes(TypedFunc<(u32, u32, u32), ()>),
}

/// How a guest is asked for room, and given it back.
struct Room {
    allocate: TypedFunc<u32, u32>,
    free: Option<Free>,
}

enum Free {
    Sized(TypedFunc<(u32, u32), ()>),
    Plain(TypedFunc<u32, ()>),
}

/// A call whose arguments fit.
pub(crate) struct Prepared {
    export: Arc<Export>,
    how: How,
}

enum How {
    /// The arguments, and behind them room for the results.
    Numbers(Vec<Val>),
    Bytes(Arc<Room>),
}

/// Looks the export up and holds the arguments against it. Runs no guest code.
pub(crate) fn prepare(
    instance: &mut Instance,
    export: &str,
    args: &Args<'_>,
) -> Result<Prepared, CallError> {
    let export = known(instance, export)?;
    let signature = |instance: &Instance| CallError::Signature {
        export: export.name.clone(),
        found: export.function.ty(&instance.store).to_string(),
    };
    let how = match args {
        Args::Numbers(numbers) => {
            if !export.takes_numbers {
                return Err(signature(instance));
            }
            let takes = export.params.len();
            if numbers.len() != takes || numbers.len() > MAX_ARGUMENTS {
                let (name, given) = (&export.name, numbers.len());
                return Err(CallError::Arguments(format!(
                    "the export {name:?} takes {takes} arguments, not {given}"
                )));
            }
            let mut values = mem::take(&mut instance.exports.values);
            values.clear();
            for (ty, value) in export.params.iter().zip(numbers.iter()) {
                values.push(number(ty, value)?);
            }
            values.resize(takes + export.results, Val::I32(0));
            How::Numbers(values)
        }
        Args::Bytes(bytes) => {
            if export.form.is_none() || instance.memory.is_none() {
                return Err(signature(instance));
            }
            if u32::try_from(bytes.len()).is_err() {
                return Err(CallError::Arguments("the request is too large".to_owned()));
            }
            How::Bytes(room(instance)?)
        }
    };
    Ok(Prepared { export, how })
}

fn known(instance: &mut Instance, name: &str) -> Result<Arc<Export>, CallError> {
    let exports = &mut instance.exports;
    if let Some(export) = exports.known.iter().find(|export| export.name == name) {
        return Ok(export.clone());
    }
    let store = &mut instance.store;
    let function = match name.starts_with(RESERVED) {
        true => None,
        false => instance.instance.get_func(&mut *store, name),
    };
    let function = function.ok_or_else(|| CallError::NoExport(name.to_owned()))?;
    let ty = function.ty(&*store);
    // To be told that a type is another one costs more than to look.
    let form = match (ty.params().len(), ty.results().len()) {
        (2, 3) => function.typed(&*store).map(Form::Returns).ok(),
        (3, 0) => function.typed(&*store).map(Form::Writes).ok(),
        _ => None,
    };
    let export = Arc::new(Export {
        name: name.to_owned(),
        function,
        params: ty.params().collect(),
        results: ty.results().len(),
        takes_numbers: ty.params().chain(ty.results()).all(|ty| is_number(&ty)),
        form,
    });
    if exports.known.len() < MAX_KNOWN {
        exports.known.push(export.clone());
    }
    Ok(export)
}

fn room(instance: &mut Instance) -> Result<Arc<Room>, CallError> {
    if let Some(room) = &instance.exports.room {
        return Ok(room.clone());
    }
    let store = &mut instance.store;
    let mut find = |name: &str| instance.instance.get_func(&mut *store, name);
    let allocator = ALLOCATORS.into_iter().find_map(&mut find);
    let (sized, plain) = (find("us_free"), find("free"));
    let allocate = allocator.and_then(|function| function.typed(&*store).ok());
    let allocate = allocate.ok_or_else(|| {
        CallError::Arguments(
            "the guest exports no `us_alloc(i32) -> i32` to take bytes with".to_owned(),
        )
    })?;
    let sized = sized.and_then(|function| function.typed(&*store).ok());
    let plain = plain.and_then(|function| function.typed(&*store).ok());
    let free = sized.map(Free::Sized).or(plain.map(Free::Plain));
    let room = Arc::new(Room { allocate, free });
    instance.exports.room = Some(room.clone());
    Ok(room)
}

/// Carries a prepared call out.
pub(crate) async fn perform<R>(
    instance: &mut Instance,
    prepared: Prepared,
    args: Args<'_>,
    with: impl FnOnce(Outcome<'_>) -> R,
) -> Result<R, CallError> {
    let Prepared { export, how } = prepared;
    let failed = |error| call_error(error, &export.name);
    match (how, args) {
        (How::Numbers(mut values), _) => {
            let (arguments, results) = values.split_at_mut(export.params.len());
            let store = &mut instance.store;
            let called = export.function.call_async(store, arguments, results).await;
            let numbers = match called {
                Ok(()) => results.iter().map(json).collect(),
                // A command ends by exiting, which is no failure if it says so.
                Err(error) if export.name == START && exit_code(&error) == Some(0) => Vec::new(),
                Err(error) => return Err(failed(error)),
            };
            instance.exports.values = values;
            Ok(with(Outcome::Numbers(numbers)))
        }
        (How::Bytes(room), Args::Bytes(bytes)) => {
            let mut guest = Guest { instance, room };
            let length = bytes.len() as u32;
            let request = guest.allocate(length, "request").await?;
            guest.write(request, bytes, "request")?;
            let mut ret = 0;
            let (result, code, message) = match &export.form {
                Some(Form::Returns(function)) => {
                    let store = &mut guest.instance.store;
                    let called = function.call_async(store, (request, length)).await;
                    called.map_err(failed)?
                }
                Some(Form::Writes(function)) => {
                    ret = guest.allocate(RETURN_AREA, "return area").await?;
                    // A guest that returns without a word has answered nothing.
                    guest.write(ret, &[0; RETURN_AREA as usize], "return area")?;
                    let store = &mut guest.instance.store;
                    let called = function.call_async(store, (ret, request, length)).await;
                    called.map_err(failed)?;
                    let [result, code, message] = guest.read_words(ret, "return area")?;
                    (result, code, message)
                }
                // `prepare` looked for one.
                None => return Err(CallError::Spent),
            };
            let outcome = match code {
                0 => Outcome::Bytes(guest.answer(result)?),
                code => Outcome::Failed {
                    code,
                    message: guest.message(message)?,
                },
            };
            let seen = with(outcome);
            guest.free(request, length).await?;
            guest.free(ret, RETURN_AREA).await?;
            Ok(seen)
        }
        // `prepare` chose how by the arguments.
        (How::Bytes { .. }, Args::Numbers(_)) => Err(CallError::Spent),
    }
}

/// Calls a function without parameters and results.
pub(crate) async fn run_plain(
    mut store: impl AsContextMut<Data = Host>,
    function: Func,
    name: &str,
) -> Result<(), CallError> {
    let plain = function.typed::<(), ()>(&store);
    let plain = plain.map_err(|_| CallError::Signature {
        export: name.to_owned(),
        found: function.ty(&store).to_string(),
    })?;
    plain
        .call_async(&mut store, ())
        .await
        .map_err(|error| call_error(error, name))
}

/// What became of a call, out of the engine's error.
pub(crate) fn call_error(error: wasmtime::Error, export: &str) -> CallError {
    if error.downcast_ref::<OutOfSlices>().is_some() {
        return CallError::OutOfTime;
    }
    if let Some(exhausted) = error.downcast_ref::<Exhausted>() {
        return CallError::HostLimit(*exhausted);
    }
    if let Some(code) = exit_code(&error) {
        return CallError::Exited(code);
    }
    let frames = error.downcast_ref::<WasmBacktrace>();
    let frames = frames.map_or(&[][..], |backtrace| backtrace.frames());
    let backtrace: Vec<String> = frames
        .iter()
        .take(MAX_FRAMES)
        .map(|frame| match frame.func_name() {
            Some(name) => cut(name, MAX_NAME).to_owned(),
            None => format!("function {}", frame.func_index()),
        })
        .collect();
    let message = match error.downcast_ref::<Trap>() {
        Some(trap) => trap.to_string().replacen("wasm trap: ", "", 1),
        None => error.root_cause().to_string(),
    };
    CallError::Trapped(Box::new(GuestTrap {
        message,
        function: match backtrace.first() {
            Some(function) => function.clone(),
            None => export.to_owned(),
        },
        backtrace,
    }))
}

/// As much of a text as fits.
pub(crate) fn cut(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}

fn exit_code(error: &wasmtime::Error) -> Option<i32> {
    error.downcast_ref::<Exit>().map(|exit| exit.0)
}

/// A guest's memory, as the host reads and writes it.
struct Guest<'a> {
    instance: &'a mut Instance,
    room: Arc<Room>,
}

impl Guest<'_> {
    /// Room of the guest's own, at 0 if none is needed.
    async fn allocate(&mut self, length: u32, what: &'static str) -> Result<u32, CallError> {
        if length == 0 {
            return Ok(0);
        }
        let store = &mut self.instance.store;
        let pointer = self.room.allocate.call_async(store, length).await;
        match pointer.map_err(|error| call_error(error, ALLOCATORS[0]))? {
            0 => Err(CallError::NoMemory(length)),
            pointer => self.check(pointer, length, what).map(|()| pointer),
        }
    }

    async fn free(&mut self, pointer: u32, length: u32) -> Result<(), CallError> {
        if pointer == 0 {
            return Ok(());
        }
        let store = &mut self.instance.store;
        let freed = match &self.room.free {
            Some(Free::Sized(free)) => free.call_async(store, (pointer, length)).await,
            Some(Free::Plain(free)) => free.call_async(store, pointer).await,
            None => Ok(()),
        };
        freed.map_err(|error| call_error(error, "us_free"))
    }

    fn check(&self, pointer: u32, length: u32, what: &'static str) -> Result<(), CallError> {
        self.slice(pointer, length, what).map(|_| ())
    }

    fn slice(&self, pointer: u32, length: u32, what: &'static str) -> Result<&[u8], CallError> {
        let memory = self.instance.memory();
        let range = pointer as usize..pointer as usize + length as usize;
        memory.get(range).ok_or(CallError::OutOfBounds {
            what,
            pointer,
            length,
            memory: memory.len() as u64,
        })
    }

    fn write(&mut self, pointer: u32, bytes: &[u8], what: &'static str) -> Result<(), CallError> {
        self.check(pointer, bytes.len() as u32, what)?;
        let Some(memory) = self.instance.memory else {
            return Ok(());
        };
        let memory = memory.data_mut(&mut self.instance.store);
        let range = pointer as usize..pointer as usize + bytes.len();
        if let Some(place) = memory.get_mut(range) {
            place.copy_from_slice(bytes);
        }
        Ok(())
    }

    fn read_words<const N: usize>(
        &self,
        pointer: u32,
        what: &'static str,
    ) -> Result<[u32; N], CallError> {
        let bytes = self.slice(pointer, 4 * N as u32, what)?;
        let mut words = [0; N];
        for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(4)) {
            *word = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        Ok(words)
    }

    fn answer(&self, pointer: u32) -> Result<&[u8], CallError> {
        if pointer == 0 {
            return Ok(&[]);
        }
        let [length] = self.read_words(pointer, "answer's length")?;
        if length as usize > MAX_ANSWER {
            return Err(CallError::AnswerTooLarge(length));
        }
        // The length itself lies in the memory, so this does not wrap.
        self.slice(pointer + 4, length, "answer")
    }

    fn message(&self, pointer: u32) -> Result<String, CallError> {
        if pointer == 0 {
            return Ok(String::new());
        }
        self.check(pointer, 1, "error message")?;
        let text = &self.instance.memory()[pointer as usize..];
        let text = &text[..text.len().min(MAX_MESSAGE)];
        let end = text.iter().position(|byte| *byte == 0);
        let text = &text[..end.unwrap_or(text.len())];
        Ok(String::from_utf8_lossy(text).into_owned())
    }
}

fn is_number(ty: &ValType) -> bool {
    matches!(
        ty,
        ValType::I32 | ValType::I64 | ValType::F32 | ValType::F64
    )
}

/// A number of this type. Whole numbers may be written with or without a sign.
fn number(ty: &ValType, value: &Value) -> Result<Val, CallError> {
    let wrong = || CallError::Arguments(format!("{value} is no {ty}"));
    let float = || match value {
        Value::Number(number) => number.as_f64(),
        Value::String(word) => match word.as_str() {
            "NaN" => Some(f64::NAN),
            "inf" => Some(f64::INFINITY),
            "-inf" => Some(f64::NEG_INFINITY),
            _ => None,
        },
        _ => None,
    };
    let value = match ty {
        ValType::I32 => value
            .as_i64()
            .and_then(|value| {
                let signed = i32::try_from(value);
                signed
                    .or(u32::try_from(value).map(|value| value as i32))
                    .ok()
            })
            .map(Val::I32),
        ValType::I64 => value
            .as_i64()
            .or(value.as_u64().map(|value| value as i64))
            .map(Val::I64),
        ValType::F32 => float().map(|value| Val::F32((value as f32).to_bits())),
        ValType::F64 => float().map(|value| Val::F64(value.to_bits())),
        _ => None,
    };
    value.ok_or_else(wrong)
}

fn json(value: &Val) -> Value {
    match value {
        Val::I32(value) => Value::from(*value),
        Val::I64(value) => Value::from(*value),
        Val::F32(bits) => json_float(f32::from_bits(*bits).into()),
        Val::F64(bits) => json_float(f64::from_bits(*bits)),
        _ => Value::Null,
    }
}

fn json_float(value: f64) -> Value {
    let word = match value {
        value if value.is_nan() => "NaN",
        f64::INFINITY => "inf",
        f64::NEG_INFINITY => "-inf",
        value => return Value::from(value),
    };
    Value::from(word)
}
