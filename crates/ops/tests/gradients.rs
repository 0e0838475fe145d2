//! The gradient table: every differentiable operation, every input, in f64 against central differences.

mod convolution;
mod pixelwise;
mod pooling;
mod resize;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use candle_core::{Result, Tensor};
use dsd_ops::gradcheck::check_gradients;

use crate::inputs::report;

/// The number of rows below. A row that gets lost makes the table fail.
const ROWS: usize = 894;

/// Exported functions that have no gradient, with the reason.
const NOT_DIFFERENTIABLE: [(&str, &str); 2] =
    [("backward", "goes through a graph and adds nothing to it"), ("is_recomputing", "a flag")];

type Function = Box<dyn Fn(&[Tensor]) -> Result<Tensor>>;

struct Row {
    op: &'static str,
    what: String,
    inputs: Vec<Tensor>,
    function: Function,
}

#[derive(Default)]
pub(crate) struct Table {
    rows: Vec<Row>,
}

impl Table {
    /// One row: the operation, the setting, the inputs to differentiate, and the call.
    pub(crate) fn row(
        &mut self,
        op: &'static str,
        what: impl Into<String>,
        inputs: &[Tensor],
        function: impl Fn(&[Tensor]) -> dsd_ops::Result<Tensor> + 'static,
    ) {
        let function = Box::new(move |tensors: &[Tensor]| Ok(function(tensors)?));
        self.rows.push(Row { op, what: what.into(), inputs: inputs.to_vec(), function });
    }

    /// The same call in every situation of the graph: plain; each input alone differentiated, the others constant; an
    /// input that another branch uses before or after; strided inputs; a strided gradient.
    pub(crate) fn situations(
        &mut self,
        op: &'static str,
        inputs: &[Tensor],
        function: impl Fn(&[Tensor]) -> dsd_ops::Result<Tensor> + Clone + 'static,
    ) {
        self.row(op, "plain", inputs, function.clone());
        if inputs.len() > 1 {
            for index in 0..inputs.len() {
                let (constants, call) = (inputs.to_vec(), function.clone());
                self.row(op, format!("input {index} alone"), &[inputs[index].clone()], move |x| {
                    let mut arguments = constants.clone();
                    arguments[index] = x[0].clone();
                    call(&arguments)
                });
            }
        }

        let call = function.clone();
        self.row(op, "another branch uses the inputs after", inputs, move |x| {
            let y = call(x)?.flatten_all()?;
            Ok(Tensor::cat(&[vec![y], squares(x)?].concat(), 0)?)
        });
        let call = function.clone();
        self.row(op, "another branch uses the inputs before", inputs, move |x| {
            let squares = squares(x)?;
            let y = call(x)?.flatten_all()?;
            Ok(Tensor::cat(&[squares, vec![y]].concat(), 0)?)
        });
        let call = function.clone();
        self.row(op, "called twice on the same inputs", inputs, move |x| {
            let (first, second) = (call(x)?, call(x)?);
            Ok((first * (second * 0.5)?)?)
        });

        // The variable holds the transposed or padded tensor, the operation sees a view of the usual shape.
        let transposed: Vec<Tensor> = inputs.iter().map(|x| transpose(x).unwrap().contiguous().unwrap()).collect();
        let call = function.clone();
        self.row(op, "transposed inputs", &transposed, move |x| {
            call(&x.iter().map(transpose).collect::<Result<Vec<_>>>()?)
        });
        let padded: Vec<Tensor> =
            inputs.iter().map(|x| x.pad_with_zeros(x.rank() - 1, 1, 2).unwrap().contiguous().unwrap()).collect();
        let call = function.clone();
        self.row(op, "narrowed inputs", &padded, move |x| {
            let inner = |x: &Tensor| x.narrow(x.rank() - 1, 1, x.dim(x.rank() - 1)? - 3);
            call(&x.iter().map(inner).collect::<Result<Vec<_>>>()?)
        });
        // candle 0.11.1 adds every gradient to zeros, so what arrives is contiguous after all; this row tells when that ends.
        self.row(op, "strided gradient", inputs, move |x| Ok(transpose(&function(x)?)?));
    }
}

fn squares(inputs: &[Tensor]) -> Result<Vec<Tensor>> {
    inputs.iter().map(|x| x.flatten_all()?.sqr()).collect()
}

/// The last two dimensions exchanged; vectors and scalars as they are.
fn transpose(x: &Tensor) -> Result<Tensor> {
    if x.rank() < 2 { Ok(x.clone()) } else { x.transpose(x.rank() - 2, x.rank() - 1) }
}

fn table() -> Table {
    let mut table = Table::default();
    convolution::rows(&mut table);
    pooling::rows(&mut table);
    resize::rows(&mut table);
    pixelwise::rows(&mut table);
    table
}

#[test]
fn every_gradient_equals_central_differences() {
    let rows = table().rows;
    let mut failures = Vec::new();
    for row in &rows {
        let name = format!("{}, {}", row.op, row.what);
        // candle panics where an operation leaves out a gradient that somebody waits for.
        match catch_unwind(AssertUnwindSafe(|| check_gradients(&name, &row.inputs, &row.function))) {
            Ok(Ok(())) => {}
            Ok(Err(message)) => failures.push(message),
            Err(_) => failures.push(format!("{name}: panics")),
        }
    }
    let mut counts = BTreeMap::new();
    for row in &rows {
        *counts.entry(row.op).or_insert(0) += 1;
    }
    println!("rows per operation: {counts:?}");
    report("rows of the gradient table", rows.len(), &failures);
    assert_eq!(rows.len(), ROWS, "rows were added or lost: change ROWS");
    println!("figure N1 operation_rows {ROWS} each in candle's graph and on the tape");
}

#[test]
fn every_exported_operation_has_a_row() {
    let exported = exported_functions();
    assert!(exported.len() >= 18, "only {exported:?}");
    let rows = table().rows;
    for (file, name) in &exported {
        let excused = NOT_DIFFERENTIABLE.iter().any(|(excused, _)| excused == name);
        assert!(excused || rows.iter().any(|row| row.op == name), "{file}: {name} has no row in the gradient table");
    }
    for row in &rows {
        assert!(exported.iter().any(|(_, name)| name == row.op), "no exported operation is called {}", row.op);
    }
}

/// (file, name) of every free public function of the files that hold operations.
fn exported_functions() -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut files = 0;
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let file = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() {
                folders.push(path);
            } else if file.ends_with(".rs") && !["check.rs", "error.rs", "gradcheck.rs"].contains(&file.as_str()) {
                files += 1;
                let text = std::fs::read_to_string(&path).unwrap();
                let names = text.lines().filter_map(|line| line.strip_prefix("pub fn "));
                let end = |rest: &str| rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap();
                found.extend(names.map(|rest| (file.clone(), rest[..end(rest)].to_string())));
            }
        }
    }
    assert!(files >= 9, "{files} source files found");
    found.sort();
    found
}
