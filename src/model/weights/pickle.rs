//! The part of Python's pickle format that `torch.save` writes for a dictionary of tensors.
//!
//! A pickle is a program for a stack machine (CPython's `Lib/pickletools.py` lists the operations). Nothing is called here: a
//! call is recorded with its arguments, and [`super::pytorch`] knows the two or three that describe tensors. Lists, dictionaries and
//! calls live in one table and are named by their place in it, so that values are small, copying one is cheap however often a
//! pickle refers to it, and neither deep nesting nor cycles can hurt.

use std::collections::HashMap;
use std::fmt;

/// What is wrong with a file.
#[derive(Debug)]
pub(super) struct Malformed {
    pub expected: String,
    pub got: String,
}

impl Malformed {
    pub(super) fn new(expected: impl Into<String>, got: impl Into<String>) -> Self {
        Malformed { expected: expected.into(), got: got.into() }
    }
}

/// A value, as far as tensors depend on it; text borrows from the file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Value<'a> {
    None,
    Bool(bool),
    Int(i64),
    Text(&'a str),
    /// A class or function: module and name.
    Global(&'a str, &'a str),
    /// A tuple or list.
    List(usize),
    Dict(usize),
    /// A call that was recorded.
    Call(usize),
    /// An object outside the pickle, by the list that identifies it.
    Persistent(usize),
    /// A number of which nothing is asked: a float, or an integer beyond 64 bits.
    OtherNumber,
}

impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::None => f.write_str("None"),
            Value::Bool(true) => f.write_str("True"),
            Value::Bool(false) => f.write_str("False"),
            Value::Int(number) => write!(f, "{number}"),
            Value::Text(text) => write!(f, "\"{}\"", text.escape_debug()),
            Value::Global(module, name) => write!(f, "{module}.{name}"),
            Value::List(_) => f.write_str("a list"),
            Value::Dict(_) => f.write_str("a dictionary"),
            Value::Call(_) => f.write_str("an object"),
            Value::Persistent(_) => f.write_str("a storage"),
            Value::OtherNumber => f.write_str("a number"),
        }
    }
}

/// A pickle that has been read: its result and what that refers to.
#[derive(Debug)]
pub(super) struct Pickle<'a> {
    pub root: Value<'a>,
    /// Bytes that the pickle took.
    pub len: usize,
    objects: Objects<'a>,
}

impl<'a> Pickle<'a> {
    /// The items of a tuple or list.
    pub(super) fn list(&self, value: Value<'a>) -> Option<&[Value<'a>]> {
        let Value::List(at) = value else { return None };
        self.objects.lists.get(at).map(Vec::as_slice)
    }

    /// The items of a dictionary, in order.
    pub(super) fn dict(&self, value: Value<'a>) -> Option<&[(Value<'a>, Value<'a>)]> {
        let Value::Dict(at) = value else { return None };
        self.objects.dicts.get(at).map(Vec::as_slice)
    }

    /// A call's module, name and arguments.
    pub(super) fn call(&self, value: Value<'a>) -> Option<(&'a str, &'a str, &[Value<'a>])> {
        let Value::Call(at) = value else { return None };
        let (callable, arguments) = self.objects.calls.get(at)?;
        let Value::Global(module, name) = *callable else { return None };
        Some((module, name, self.list(*arguments)?))
    }

    /// What identifies an object outside the pickle.
    pub(super) fn persistent(&self, value: Value<'a>) -> Option<&[Value<'a>]> {
        let Value::Persistent(at) = value else { return None };
        self.list(Value::List(at))
    }
}

#[derive(Debug, Default)]
struct Objects<'a> {
    lists: Vec<Vec<Value<'a>>>,
    dicts: Vec<Vec<(Value<'a>, Value<'a>)>>,
    calls: Vec<(Value<'a>, Value<'a>)>,
}

/// Each operation takes some tens of bytes at most, so this bounds memory; a tensor takes about 40.
const MAX_OPERATIONS: usize = 1_000_000;

/// Reads the pickle at the beginning of `bytes`.
pub(super) fn read(bytes: &[u8]) -> Result<Pickle<'_>, Malformed> {
    let mut machine = Machine {
        bytes,
        at: 0,
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        objects: Objects::default(),
    };
    for _ in 0..MAX_OPERATIONS {
        if let Some(root) = machine.operation()? {
            return Ok(Pickle { root, len: machine.at, objects: machine.objects });
        }
    }
    Err(Malformed::new(format!("a pickle of at most {MAX_OPERATIONS} operations"), "more"))
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    stack: Vec<Value<'a>>,
    /// Heights of the stack at the marks that are open.
    marks: Vec<usize>,
    memo: HashMap<u32, Value<'a>>,
    objects: Objects<'a>,
}

impl<'a> Machine<'a> {
    /// Does one operation; gives the result at the last.
    fn operation(&mut self) -> Result<Option<Value<'a>>, Malformed> {
        let start = self.at;
        let [code] = self.array()?;
        match code {
            // PROTO
            0x80 => _ = self.array::<1>()?,
            // STOP
            b'.' => return self.pop().map(Some),
            b'(' => self.marks.push(self.stack.len()),
            b'N' => self.stack.push(Value::None),
            // NEWTRUE, NEWFALSE
            0x88 => self.stack.push(Value::Bool(true)),
            0x89 => self.stack.push(Value::Bool(false)),
            b'J' | b'K' | b'M' | 0x8a => self.integer(code)?,
            // BINFLOAT
            b'G' => {
                self.array::<8>()?;
                self.stack.push(Value::OtherNumber);
            }
            // BINUNICODE
            b'X' => {
                let len = u32::from_le_bytes(self.array()?);
                let text = self.slice(len as usize)?;
                let text = text_of(text)?;
                self.stack.push(Value::Text(text));
            }
            // SHORT_BINSTRING
            b'U' => {
                let [len] = self.array()?;
                let text = text_of(self.slice(len.into())?)?;
                self.stack.push(Value::Text(text));
            }
            // GLOBAL
            b'c' => {
                let value = Value::Global(self.line()?, self.line()?);
                self.stack.push(value);
            }
            b']' | b')' => self.push_list(Vec::new()),
            // TUPLE, TUPLE1, TUPLE2, TUPLE3
            b't' => {
                let items = self.pop_to_mark()?;
                self.push_list(items);
            }
            0x85..=0x87 => {
                let items = self.pop_several(usize::from(code - 0x84))?;
                self.push_list(items);
            }
            b'}' => self.push_dict(),
            b'a' | b'e' => self.append(code == b'e')?,
            b's' | b'u' => self.set_items(code == b'u')?,
            // REDUCE and NEWOBJ
            b'R' | 0x81 => self.call()?,
            // BUILD: the attributes of an object, of which nothing is asked.
            b'b' => _ = self.pop()?,
            // BINPERSID
            b'Q' => match self.pop()? {
                Value::List(id) => self.stack.push(Value::Persistent(id)),
                other => return Err(Malformed::new("a persistent id that is a tuple", other.to_string())),
            },
            b'q' | b'r' | b'h' | b'j' => self.memo(code)?,
            other => {
                let got = format!("operation {other:#04x} at byte {start}");
                return Err(Malformed::new("a pickle of a dictionary of tensors", got));
            }
        }
        Ok(None)
    }

    /// BININT (4 bytes, signed), BININT1, BININT2 (unsigned), LONG1 (as many bytes as it says, signed).
    fn integer(&mut self, code: u8) -> Result<(), Malformed> {
        let value = match code {
            b'J' => Value::Int(i32::from_le_bytes(self.array()?).into()),
            b'K' => Value::Int(u8::from_le_bytes(self.array()?).into()),
            b'M' => Value::Int(u16::from_le_bytes(self.array()?).into()),
            _ => {
                let [len] = self.array()?;
                let bytes = self.slice(len.into())?;
                let negative = bytes.last().is_some_and(|byte| *byte >= 0x80);
                let mut wide = if negative { [0xff; 8] } else { [0; 8] };
                match wide.get_mut(..bytes.len()) {
                    Some(low) => {
                        low.copy_from_slice(bytes);
                        Value::Int(i64::from_le_bytes(wide))
                    }
                    None => Value::OtherNumber,
                }
            }
        };
        self.stack.push(value);
        Ok(())
    }

    /// BINPUT, LONG_BINPUT, BINGET, LONG_BINGET.
    fn memo(&mut self, code: u8) -> Result<(), Malformed> {
        let key = match code {
            b'q' | b'h' => u8::from_le_bytes(self.array()?).into(),
            _ => u32::from_le_bytes(self.array()?),
        };
        if matches!(code, b'q' | b'r') {
            let value = *self.top()?;
            self.memo.insert(key, value);
        } else {
            let value = self.memo.get(&key).copied();
            self.stack.push(value.ok_or_else(|| Malformed::new("a value that was stored", format!("number {key}")))?);
        }
        Ok(())
    }

    /// REDUCE, NEWOBJ: records a call. An ordered dictionary, which is called without arguments and filled later, is a dictionary.
    fn call(&mut self) -> Result<(), Malformed> {
        let (arguments, callable) = (self.pop()?, self.pop()?);
        if callable == Value::Global("collections", "OrderedDict") {
            self.push_dict();
        } else {
            self.stack.push(Value::Call(self.objects.calls.len()));
            self.objects.calls.push((callable, arguments));
        }
        Ok(())
    }

    /// APPEND, APPENDS.
    fn append(&mut self, several: bool) -> Result<(), Malformed> {
        let items = if several { self.pop_to_mark()? } else { self.pop_several(1)? };
        let top = *self.top()?;
        let list = if let Value::List(at) = top { self.objects.lists.get_mut(at) } else { None };
        list.ok_or_else(|| Malformed::new("a list to append to", format!("{top:?}")))?.extend(items);
        Ok(())
    }

    /// SETITEM, SETITEMS.
    fn set_items(&mut self, several: bool) -> Result<(), Malformed> {
        let items = if several { self.pop_to_mark()? } else { self.pop_several(2)? };
        let (pairs, rest) = items.as_chunks::<2>();
        let top = *self.top()?;
        let dict = if let Value::Dict(at) = top { self.objects.dicts.get_mut(at) } else { None };
        match dict {
            Some(dict) if rest.is_empty() => dict.extend(pairs.iter().map(|[key, value]| (*key, *value))),
            _ => {
                return Err(Malformed::new(
                    "a dictionary and pairs to set",
                    format!("{top} and {} values", items.len()),
                ));
            }
        }
        Ok(())
    }

    fn push_list(&mut self, items: Vec<Value<'a>>) {
        self.stack.push(Value::List(self.objects.lists.len()));
        self.objects.lists.push(items);
    }

    fn push_dict(&mut self) {
        self.stack.push(Value::Dict(self.objects.dicts.len()));
        self.objects.dicts.push(Vec::new());
    }

    /// The values above the last mark.
    fn available(&self) -> usize {
        self.stack.len() - self.marks.last().copied().unwrap_or(0)
    }

    fn top(&self) -> Result<&Value<'a>, Malformed> {
        let last = self.stack.last().filter(|_| self.available() > 0);
        last.ok_or_else(|| Malformed::new("a value on the stack", format!("none at byte {}", self.at)))
    }

    fn pop(&mut self) -> Result<Value<'a>, Malformed> {
        let top = *self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn pop_several(&mut self, count: usize) -> Result<Vec<Value<'a>>, Malformed> {
        if self.available() < count {
            return Err(Malformed::new(format!("{count} values on the stack"), self.available().to_string()));
        }
        Ok(self.stack.split_off(self.stack.len() - count))
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Value<'a>>, Malformed> {
        let mark = self.marks.pop();
        let mark = mark.ok_or_else(|| Malformed::new("a mark on the stack", format!("none at byte {}", self.at)))?;
        Ok(self.stack.split_off(mark))
    }

    fn slice(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let rest = &self.bytes[self.at..];
        let short = || Malformed::new(format!("{len} bytes at byte {} of the pickle", self.at), rest.len().to_string());
        let slice = rest.get(..len).ok_or_else(short)?;
        self.at += len;
        Ok(slice)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let mut array = [0; N];
        array.copy_from_slice(self.slice(N)?);
        Ok(array)
    }

    /// The text up to the end of the line, which is skipped.
    fn line(&mut self) -> Result<&'a str, Malformed> {
        let end = self.bytes[self.at..].iter().position(|byte| *byte == b'\n');
        let end = end.ok_or_else(|| Malformed::new("a line", "the end of the pickle"))?;
        let line = text_of(self.slice(end)?)?;
        self.at += 1;
        Ok(line)
    }
}

fn text_of(bytes: &[u8]) -> Result<&str, Malformed> {
    std::str::from_utf8(bytes).map_err(|error| Malformed::new("text in UTF-8", error.to_string()))
}
