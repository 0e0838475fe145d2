//! The other side of a comparison: PyTorch in a process of its own (`bench/torch_peer.py`), spoken to by lines of JSON.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail};
use candle_core::Tensor;
use serde::Deserialize;
use serde_json::{Value, json};

/// The variable with the path of the interpreter.
const INTERPRETER: &str = "DSD_PYTHON";
/// In the folder of this crate; it reads other files of the repository.
const SCRIPT: &str = "bench/torch_peer.py";

/// How the other side has answered to a case.
#[derive(Deserialize)]
pub(super) struct Prepared {
    /// The ways in which it can run: memory formats, and onnxruntime where it infers.
    pub(super) ways: Vec<String>,
    /// The value of a scalar, before any step.
    pub(super) value: Option<f64>,
    /// Growth of its memory over what it had before the case, in MB, where the system tells.
    pub(super) peak_mb: Option<f64>,
}

/// A running peer and the folder through which tensors go to it.
pub(super) struct Peer {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    folder: tempfile::TempDir,
}

impl Peer {
    /// Starts it with this many threads.
    pub(super) fn start(threads: usize) -> Result<Self> {
        let Some(interpreter) = std::env::var_os(INTERPRETER) else {
            bail!("--peer torch: {INTERPRETER} is not set; it names a Python that has torch");
        };
        // Where `cargo run` works now, else where this was built.
        let now = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
        let folders = now.into_iter().chain([PathBuf::from(env!("CARGO_MANIFEST_DIR"))]);
        let Some(script) = folders.map(|folder| folder.join(SCRIPT)).find(|script| script.exists()) else {
            bail!("--peer torch: there is no {SCRIPT} in {}; it is part of the repository", env!("CARGO_MANIFEST_DIR"));
        };
        let mut child = Command::new(&interpreter)
            .arg(&script)
            .arg(threads.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("{INTERPRETER}={}: cannot start", interpreter.display()))?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            bail!("{INTERPRETER}: no pipes");
        };
        let folder = tempfile::tempdir()?;
        Ok(Self { child, input, output: BufReader::new(output), folder })
    }

    fn ask(&mut self, question: &Value) -> Result<Value> {
        writeln!(self.input, "{question}").context("the peer has gone")?;
        self.input.flush().context("the peer has gone")?;
        let mut line = String::new();
        if self.output.read_line(&mut line).context("the peer has gone")? == 0 {
            bail!("the peer has ended; what it said is above");
        }
        let answer: Value = serde_json::from_str(&line).with_context(|| format!("the peer said {line:?}"))?;
        match answer.get("error") {
            Some(error) => bail!("the peer: {error}"),
            None => Ok(answer),
        }
    }

    /// Makes a case ready and warms it up; the reason where the peer has no such thing.
    pub(super) fn prepare(&mut self, case: &Value) -> Result<std::result::Result<Prepared, String>> {
        let answer = self.ask(&json!({ "prepare": case }))?;
        if let Some(reason) = answer.get("absent") {
            return Ok(Err(reason.as_str().unwrap_or_default().to_string()));
        }
        Ok(Ok(serde_json::from_value(answer)?))
    }

    /// A turn of so many seconds of the prepared case in one of its ways: milliseconds of a run.
    pub(super) fn time(&mut self, way: &str, seconds: f64) -> Result<f64> {
        self.ask(&json!({ "run": way, "seconds": seconds }))?
            .get("ms")
            .and_then(Value::as_f64)
            .context("the peer gave no time")
    }

    /// Writes tensors where the peer reads them; the path.
    pub(super) fn share(&self, name: &str, tensors: &BTreeMap<String, Tensor>) -> Result<Value> {
        let path = self.folder.path().join(format!("{name}.safetensors"));
        let bytes = safetensors::serialize(tensors, None)?;
        std::fs::write(&path, bytes).with_context(|| path.display().to_string())?;
        Ok(path.display().to_string().into())
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // Nothing is lost with it: an error here means that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
