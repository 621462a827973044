//! A serial port that can only write: enough for a kernel's early console, which polls it.
//!
//! What the guest says goes to one sink, line by line. A sink that cannot take more loses lines rather
//! than hold up a vCPU.

use std::{
    io::Write,
    sync::{Mutex, PoisonError},
};

use serde::{Deserialize, Serialize};

/// COM1.
pub(crate) const PORT: u16 = 0x3f8;
/// Its registers.
pub(crate) const PORTS: u16 = 8;

const DATA: u16 = 0;
const INTERRUPT_ENABLE: u16 = 1;
const LINE_CONTROL: u16 = 3;
const LINE_STATUS: u16 = 5;
/// In the line control register: registers 0 and 1 are the clock's divisor.
const DIVISOR: u8 = 1 << 7;
/// In the line status register: the transmitter is empty.
const EMPTY: u8 = 0x60;

/// Bytes collected at most before they are passed on.
const LINE: usize = 256;

pub(crate) struct Serial(Mutex<Inside>);

/// As data.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SerialState {
    /// What has no end of line yet.
    line: Vec<u8>,
    line_control: u8,
}

struct Inside {
    sink: Box<dyn Write + Send>,
    line: Vec<u8>,
    line_control: u8,
}

impl Serial {
    pub fn new(sink: Box<dyn Write + Send>) -> Self {
        Self(Mutex::new(Inside {
            sink,
            line: Vec::with_capacity(LINE),
            line_control: 0,
        }))
    }

    pub fn read(&self, register: u16) -> u8 {
        match register {
            LINE_STATUS => EMPTY,
            LINE_CONTROL => self.inside().line_control,
            // No interrupt is ever enabled.
            INTERRUPT_ENABLE => 0,
            _ => 0,
        }
    }

    pub fn write(&self, register: u16, byte: u8) {
        let mut inside = self.inside();
        match register {
            DATA if inside.line_control & DIVISOR == 0 => {
                inside.line.push(byte);
                if byte == b'\n' || inside.line.len() >= LINE {
                    inside.flush();
                }
            }
            LINE_CONTROL => inside.line_control = byte,
            _ => {}
        }
    }

    pub fn save(&self) -> SerialState {
        let inside = self.inside();
        SerialState {
            line: inside.line.clone(),
            line_control: inside.line_control,
        }
    }

    pub fn restore(&self, state: SerialState) {
        let SerialState {
            mut line,
            line_control,
        } = state;
        line.truncate(LINE - 1);
        let mut inside = self.inside();
        inside.line = line;
        inside.line_control = line_control;
    }

    /// Passes on what has no end of line yet.
    pub fn flush(&self) {
        self.inside().flush();
    }

    fn inside(&self) -> std::sync::MutexGuard<'_, Inside> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inside {
    fn flush(&mut self) {
        // A reader that is gone or slow is no reason to stop a guest.
        let _ = self.sink.write(&self.line).and_then(|_| self.sink.flush());
        self.line.clear();
    }
}
