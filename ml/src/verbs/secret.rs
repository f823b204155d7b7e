//! `ml secret`: values that the daemon keeps for the caller's runs. A value comes from
//! standard input, or is typed without being shown; it never is an argument.

use std::io::{self, IsTerminal, Read};

use mlmesh_api::SetSecretDto;
use mlmesh_model::SecretText;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use serde_json::json;

use crate::cli;
use crate::context::Context;
use crate::error::{Failure, Outcome};
use crate::output::{self, Table, Tone};

/// Bytes that are read; the daemon takes fewer and says how many.
const VALUE_BYTES_MAX: u64 = 48 * 1024;

/// One of the verbs of `ml secret`.
pub(crate) fn secret(context: &Context, verb: &cli::Secret) -> Outcome {
    match verb {
        cli::Secret::Set { name } => set(context, name),
        cli::Secret::List => list(context),
        cli::Secret::Remove { name } => {
            context.client()?.remove_secret(name)?;
            if context.output.json {
                let removed = json!({"schema": "mlmesh.secret_removed/1", "name": name});
                return context.output.json(&removed);
            }
            context.output.line(format_args!("removed {name}"))
        }
    }
}

fn set(context: &Context, name: &str) -> Outcome {
    let client = context.client()?;
    let failed = |error: io::Error| {
        Failure::failed(
            mlmesh_api::error_code::LOCAL,
            format!("read the value of `{name}`: {error}"),
            format!("`printf %s VALUE | ml secret set {name}` gives it another way"),
        )
    };
    let value = if io::stdin().is_terminal() {
        let quiet = Quiet::begin().map_err(failed)?;
        context
            .output
            .ask(format_args!("value of {name} (not shown): "));
        let typed = typed();
        drop(quiet);
        context.output.ask("\n");
        typed.map_err(failed)?
    } else {
        piped().map_err(failed)?
    };
    let value = String::from_utf8(value).map_err(|_| {
        Failure::usage(
            format!("the value of `{name}` is not UTF-8"),
            "encode it, for example as base64",
        )
    })?;
    let value = SecretText(value);
    let stored = client.set_secret(name, &SetSecretDto { value })?;
    if context.output.json {
        return context.output.json(&stored);
    }
    context.output.line(format_args!(
        "stored {} for runs of {}",
        stored.name, stored.owner
    ))
}

/// Everything on standard input, without the line end that `echo` adds.
fn piped() -> io::Result<Vec<u8>> {
    let mut value = Vec::new();
    io::stdin()
        .lock()
        .take(VALUE_BYTES_MAX)
        .read_to_end(&mut value)?;
    if value.ends_with(b"\n") {
        value.pop();
    }
    Ok(value)
}

/// A line from the terminal, which shows nothing of it meanwhile.
fn typed() -> io::Result<Vec<u8>> {
    const INTERRUPT: u8 = 3;
    const END: u8 = 4;
    const BACKSPACE: [u8; 2] = [8, 127];
    const ERASE_LINE: u8 = 21;
    let mut value = Vec::new();
    for byte in io::stdin().lock().bytes().take(VALUE_BYTES_MAX as usize) {
        match byte? {
            b'\n' | b'\r' | END => break,
            INTERRUPT => return Err(io::Error::other("it was interrupted")),
            ERASE_LINE => value.clear(),
            byte if BACKSPACE.contains(&byte) => drop(value.pop()),
            byte => value.push(byte),
        }
    }
    Ok(value)
}

/// A terminal that shows nothing and sends no signals, so that Ctrl-C comes as a byte
/// and the terminal is what it was again when this is dropped.
struct Quiet(Termios);

impl Quiet {
    fn begin() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut quiet = before.clone();
        quiet.local_modes -= LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG;
        tcsetattr(io::stdin(), OptionalActions::Flush, &quiet)?;
        Ok(Self(before))
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        // A terminal that is gone shows nothing either.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.0);
    }
}

fn list(context: &Context) -> Outcome {
    let stored = context.client()?.secrets()?;
    let output = &context.output;
    if output.json {
        return output.json(&stored);
    }
    let mut table = Table::new(&["NAME", "OWNER", "SET AT"]);
    for secret in &stored.secrets {
        table.row([
            (secret.name.clone(), Tone::Plain),
            (secret.owner.clone(), Tone::Plain),
            (output::date_time(secret.set_at), Tone::Dim),
        ]);
    }
    if table.is_empty() {
        output.say("no secrets");
        output.hint("`ml secret set NAME` stores one");
        return Ok(());
    }
    output.table(&table)
}
