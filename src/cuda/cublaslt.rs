//! Matrix products through cuBLASLt, with a plan cache of our own.
//!
//! A row's bits must not depend on how many rows are multiplied with it, so one algorithm (tile, stages, no split of k, no
//! reduction across blocks) is chosen per weight shape and types, for a middling number of rows, and used for every number
//! of rows. f32 is computed in f32, never in TF32. Where the library has no such algorithm, it is asked for less, step by step
//! ([`LADDER`]); a product that it cannot do at all is left to `kernels/gemm.cu`.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::ptr;

use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys;

use super::{Gemm, WORKSPACE_BYTES};
use crate::backend::Dtype;

/// What the addresses of all matrices must be multiples of.
const ALIGNMENT: u32 = 16;
/// `CUBLAS_OP_T` of cublas_api.h, which cudarc does not name here.
const OP_T: i32 = 1;
/// The number of rows that an algorithm is chosen for, and those it must be able to serve.
const TYPICAL_ROWS: usize = 128;
const SERVED_ROWS: [usize; 2] = [1, 4096];
/// How many algorithms the library is asked to propose.
const PROPOSALS: usize = 32;

/// What an algorithm is chosen for.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    n: usize,
    k: usize,
    out_stride: usize,
    input: Dtype,
    output: Dtype,
    has_bias: bool,
}

/// What the library is asked for: an alignment of its algorithm's own, and whether it adds the bias.
#[derive(Clone, Copy)]
struct Wish {
    /// Addresses and rows start at multiples of 16 bytes; else at multiples of an element.
    is_aligned: bool,
    adds_bias: bool,
}

/// What the library is asked for, the best first.
const LADDER: [Wish; 4] = [
    Wish { is_aligned: true, adds_bias: true },
    Wish { is_aligned: false, adds_bias: true },
    Wish { is_aligned: true, adds_bias: false },
    Wish { is_aligned: false, adds_bias: false },
];

/// What is left to do once a product has been enqueued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// Nothing.
    Nothing,
    /// The bias is to be added.
    Bias,
    /// The library has no plan: the product itself.
    Product,
}

struct Plan {
    adds_bias: bool,
    operation: Operation,
    weight: Layout,
    algorithm: sys::cublasLtMatmulAlgo_t,
    /// Bytes that it needs for a middling number of rows.
    workspace: usize,
    /// Layouts of `x` and `out` by number of rows.
    rows: HashMap<usize, (Layout, Layout)>,
}

/// The library's handle and all plans made so far.
pub struct Plans {
    handle: sys::cublasLtHandle_t,
    /// None for what the library does not do.
    plans: HashMap<Key, Option<Plan>>,
}

// SAFETY: the handle and the descriptors are bound to no thread.
unsafe impl Send for Plans {}

impl Plans {
    /// Opens the library, which must be present; a context is current.
    pub fn new() -> Result<Self, String> {
        let handle = result::create_handle().map_err(describe)?;
        Ok(Plans { handle, plans: HashMap::new() })
    }

    /// Enqueues a product; `workspace` is device memory of `WORKSPACE_BYTES` that only this stream's products use.
    ///
    /// # Safety
    /// The matrices lie in device memory as `Gemm` says, `out` overlaps neither of the others, and `stream` is valid.
    pub unsafe fn run(&mut self, gemm: &Gemm, workspace: u64, stream: *mut c_void) -> Result<Rest, String> {
        if [gemm.x, gemm.weight, gemm.bias, gemm.out].iter().any(|address| !address.is_multiple_of(ALIGNMENT.into())) {
            return Err(format!("expected matrices at multiples of {ALIGNMENT} bytes"));
        }
        let &Gemm { n, k, out_stride, input, output, bias, .. } = gemm;
        let key = Key { n, k, out_stride, input, output, has_bias: bias != 0 };
        let handle = self.handle;
        let plan = match self.plans.entry(key) {
            Entry::Occupied(found) => found.into_mut(),
            Entry::Vacant(place) => place.insert(Plan::find(handle, &key, bias).map_err(describe)?),
        };
        let Some(plan) = plan else { return Ok(Rest::Product) };
        if bias != 0 && plan.adds_bias {
            // Read when the product is enqueued: other weights of this shape have a bias of their own.
            plan.operation.set_bias(bias).map_err(describe)?;
        }
        let (x, out) = match plan.rows.entry(gemm.rows) {
            Entry::Occupied(found) => found.into_mut(),
            Entry::Vacant(place) => place.insert(row_layouts(&key, gemm.rows).map_err(describe)?),
        };
        let (one, zero) = (1.0f32, 0.0f32);
        // SAFETY: the descriptors are alive, made for these shapes and types; the memory is the caller's promise. `c` is
        // multiplied by 0 and may be `out` itself.
        let outcome = unsafe {
            result::matmul(
                handle,
                plan.operation.0,
                (&raw const one).cast(),
                (&raw const zero).cast(),
                gemm.weight as *const c_void,
                plan.weight.0,
                gemm.x as *const c_void,
                x.0,
                gemm.out as *const c_void,
                out.0,
                gemm.out as *mut c_void,
                out.0,
                &plan.algorithm,
                workspace as *mut c_void,
                WORKSPACE_BYTES,
                stream.cast(),
            )
        };
        outcome.map_err(describe)?;
        Ok(if bias != 0 && !plan.adds_bias { Rest::Bias } else { Rest::Nothing })
    }

    /// Each product so far and its algorithm, in a fixed order.
    pub fn describe(&self) -> Vec<String> {
        let line = |(key, plan): (&Key, &Option<Plan>)| {
            let Key { n, k, out_stride, input, output, has_bias } = key;
            let bias = if *has_bias { " with bias" } else { "" };
            let how = plan.as_ref().map_or_else(|| "own kernel".to_owned(), Plan::describe);
            format!("[{n}, {k}] {} to {} {out_stride} apart{bias}: {how}", input.name(), output.name())
        };
        let mut lines: Vec<String> = self.plans.iter().map(line).collect();
        lines.sort();
        lines
    }
}

impl Drop for Plans {
    fn drop(&mut self) {
        self.plans.clear();
        // SAFETY: created by `new`, used no more. A failure leaves nothing to be done.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

impl Plan {
    /// The first plan of the ladder that there is.
    fn find(handle: sys::cublasLtHandle_t, key: &Key, bias: u64) -> Result<Option<Self>, CublasError> {
        for wish in LADDER {
            if key.has_bias || !wish.adds_bias {
                match Self::new(handle, key, bias, wish) {
                    Err(CublasError(sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED)) => {}
                    found => return found.map(Some),
                }
            }
        }
        Ok(None)
    }

    fn describe(&self) -> String {
        use sys::cublasLtMatmulAlgoConfigAttributes_t as Attribute;
        let read = |attribute| config(&self.algorithm, attribute).map_or("?".to_owned(), |value| value.to_string());
        format!(
            "cuBLASLt algorithm {}, tile {}, stages {}, split {}, workspace {} bytes{}",
            read(Attribute::CUBLASLT_ALGO_CONFIG_ID),
            read(Attribute::CUBLASLT_ALGO_CONFIG_TILE_ID),
            read(Attribute::CUBLASLT_ALGO_CONFIG_STAGES_ID),
            read(Attribute::CUBLASLT_ALGO_CONFIG_SPLITK_NUM),
            self.workspace,
            if self.adds_bias { ", bias fused" } else { "" }
        )
    }

    fn new(handle: sys::cublasLtHandle_t, key: &Key, bias: u64, wish: Wish) -> Result<Self, CublasError> {
        let operation = Operation::new()?;
        if wish.adds_bias {
            operation.add_bias()?;
            operation.set_bias(bias)?;
        }
        // Row-major [n, k] is column-major [k, n]: the library computes out^T = weight^(T T) x^T without moving anything.
        let weight = Layout::new(key.input, key.k, key.n, key.k)?;
        let (x, out) = row_layouts(key, TYPICAL_ROWS)?;
        let served: Vec<_> = SERVED_ROWS.iter().map(|&rows| row_layouts(key, rows)).collect::<Result<_, _>>()?;
        let preference = Preference::new(if wish.is_aligned { ALIGNMENT } else { key.input.size() as u32 })?;
        let mut proposals = [MaybeUninit::<sys::cublasLtMatmulHeuristicResult_t>::uninit(); PROPOSALS];
        let mut count = 0;
        // SAFETY: the descriptors are alive, and there is room for as many results as are asked for.
        unsafe {
            sys::cublasLtMatmulAlgoGetHeuristic(
                handle,
                operation.0,
                weight.0,
                x.0,
                out.0,
                out.0,
                preference.0,
                PROPOSALS as i32,
                proposals.as_mut_ptr().cast(),
                &mut count,
            )
            .result()?;
        }
        let found = proposals.iter().take(count as usize).find_map(|proposal| {
            // SAFETY: the library has written the first `count` results.
            let proposal = unsafe { proposal.assume_init_ref() };
            let serves = |(x, out): &(Layout, Layout)| serves(handle, &operation, &weight, x, out, &proposal.algo);
            let usable = proposal.state == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS
                && sums_in_one_piece(&proposal.algo)
                && served.iter().all(serves);
            usable.then_some((proposal.algo, proposal.workspaceSize))
        });
        let (algorithm, workspace) = found.ok_or(CublasError(sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED))?;
        Ok(Plan { adds_bias: wish.adds_bias, operation, weight, algorithm, workspace, rows: HashMap::new() })
    }
}

/// Whether each element of `out` is summed by one block, in one order.
fn sums_in_one_piece(algorithm: &sys::cublasLtMatmulAlgo_t) -> bool {
    use sys::cublasLtMatmulAlgoConfigAttributes_t::{
        CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME, CUBLASLT_ALGO_CONFIG_SPLITK_NUM,
    };
    // Split by 0 or 1 is no split; reduction scheme 0 is none.
    config(algorithm, CUBLASLT_ALGO_CONFIG_SPLITK_NUM).is_some_and(|splits| splits <= 1)
        && config(algorithm, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME) == Some(0)
}

/// A setting of an algorithm, of those that are 32-bit numbers.
fn config(algorithm: &sys::cublasLtMatmulAlgo_t, attribute: sys::cublasLtMatmulAlgoConfigAttributes_t) -> Option<u32> {
    let mut value = u32::MAX;
    // SAFETY: the callers ask for 32-bit numbers, and there is room for one.
    let status = unsafe {
        let room = (&raw mut value).cast();
        sys::cublasLtMatmulAlgoConfigGetAttribute(algorithm, attribute, room, size_of::<u32>(), ptr::null_mut())
    };
    status.result().ok().map(|()| value)
}

/// Whether an algorithm works for other numbers of rows, within the workspace.
fn serves(
    handle: sys::cublasLtHandle_t,
    operation: &Operation,
    weight: &Layout,
    x: &Layout,
    out: &Layout,
    algorithm: &sys::cublasLtMatmulAlgo_t,
) -> bool {
    let mut result = MaybeUninit::<sys::cublasLtMatmulHeuristicResult_t>::uninit();
    // SAFETY: the descriptors are alive, and there is room for the result, which is read only after a success.
    unsafe {
        sys::cublasLtMatmulAlgoCheck(handle, operation.0, weight.0, x.0, out.0, out.0, algorithm, result.as_mut_ptr())
            .result()
            .is_ok_and(|()| result.assume_init_ref().workspaceSize <= WORKSPACE_BYTES)
    }
}

fn row_layouts(key: &Key, rows: usize) -> Result<(Layout, Layout), CublasError> {
    Ok((Layout::new(key.input, key.k, rows, key.k)?, Layout::new(key.output, key.n, rows, key.out_stride)?))
}

fn data_type(dtype: Dtype) -> sys::cudaDataType {
    match dtype {
        Dtype::F32 => sys::cudaDataType::CUDA_R_32F,
        Dtype::F16 => sys::cudaDataType::CUDA_R_16F,
        Dtype::Bf16 => sys::cudaDataType::CUDA_R_16BF,
        Dtype::I8 => sys::cudaDataType::CUDA_R_8I,
    }
}

fn describe(error: CublasError) -> String {
    format!("cuBLASLt: {error}")
}

/// `weight` transposed, `x` as it is, sums in f32.
struct Operation(sys::cublasLtMatmulDesc_t);

impl Operation {
    fn new() -> Result<Self, CublasError> {
        let compute = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let operation = Operation(result::create_matmul_desc(compute, sys::cudaDataType::CUDA_R_32F)?);
        operation.set(sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA, OP_T)?;
        Ok(operation)
    }

    /// Adds a bias of the type of `out` to each of its rows: to the library, which sees `out` transposed, to each column.
    fn add_bias(&self) -> Result<(), CublasError> {
        let epilogue = sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS as u32;
        self.set(sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue)
    }

    fn set_bias(&self, address: u64) -> Result<(), CublasError> {
        self.set(sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER, address)
    }

    fn set<V: Copy>(&self, attribute: sys::cublasLtMatmulDescAttributes_t, value: V) -> Result<(), CublasError> {
        // SAFETY: the callers give each attribute a value of its type, which is read before the call returns.
        unsafe { result::set_matmul_desc_attribute(self.0, attribute, (&raw const value).cast(), size_of::<V>()) }
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        // SAFETY: created by `new`, destroyed once. A failure leaves nothing to be done.
        let _ = unsafe { result::destroy_matmul_desc(self.0) };
    }
}

/// A column-major matrix.
struct Layout(sys::cublasLtMatrixLayout_t);

impl Layout {
    fn new(dtype: Dtype, rows: usize, columns: usize, stride: usize) -> Result<Self, CublasError> {
        Ok(Layout(result::create_matrix_layout(data_type(dtype), rows as u64, columns as u64, stride as i64)?))
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: created by `new`, destroyed once. A failure leaves nothing to be done.
        let _ = unsafe { result::destroy_matrix_layout(self.0) };
    }
}

/// No reduction across blocks, a workspace of ours, addresses at multiples of so many bytes.
struct Preference(sys::cublasLtMatmulPreference_t);

impl Preference {
    fn new(alignment: u32) -> Result<Self, CublasError> {
        use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
        let preference = Preference(result::create_matmul_pref()?);
        let workspace = WORKSPACE_BYTES;
        // SAFETY: the workspace is a size, the others are 32-bit numbers; each is read before its call returns.
        unsafe {
            let set = |attribute, value: *const c_void, bytes| {
                result::set_matmul_pref_attribute(preference.0, attribute, value, bytes)
            };
            set(
                Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                (&raw const workspace).cast(),
                size_of::<usize>(),
            )?;
            let no_reduction = 0u32;
            let attribute = Attribute::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK;
            set(attribute, (&raw const no_reduction).cast(), size_of::<u32>())?;
            for attribute in [
                Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
                Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
                Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
                Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
            ] {
                set(attribute, (&raw const alignment).cast(), size_of::<u32>())?;
            }
        }
        Ok(preference)
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: created by `new`, destroyed once. A failure leaves nothing to be done.
        let _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}
