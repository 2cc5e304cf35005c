//! Each rule of the fake driver, broken on purpose: it must be named.

use cudarc::driver::result::{self, DriverError, event, graph, primary_ctx, stream};
use cudarc::driver::sys;

use super::{is_child, run};
use crate::cuda;
use crate::cuda::device::{Device, Launch};

const PLAIN: sys::CUevent_flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING;

/// A context with two streams, and nothing of the device layer's in between.
struct Raw {
    streams: [sys::CUstream; 2],
}

impl Raw {
    fn open() -> Self {
        // SAFETY: an initialised driver has a device 0; the context is never released.
        unsafe {
            result::init().expect("a driver");
            let context = primary_ctx::retain(0).expect("a context");
            result::ctx::set_current(context).expect("a current context");
        }
        let stream = || stream::create(stream::StreamKind::NonBlocking).expect("a stream");
        Raw { streams: [stream(), stream()] }
    }

    fn memory(&self, bytes: usize) -> u64 {
        // SAFETY: the stream is alive.
        unsafe { result::malloc_async(self.streams[0], bytes) }.expect("memory")
    }
}

/// Defines, per rule, a test that breaks it on the fake driver, and one that runs it there and finds the rule named.
macro_rules! planted {
    ($($name:ident: $rule:literal, $part:literal, $body:expr;)*) => {
        $(
            mod $name {
                use super::*;

                #[test]
                #[ignore = "breaks a rule of the fake driver"]
                fn breaks() {
                    if is_child() {
                        let body: fn() = $body;
                        body();
                    }
                }

                #[test]
                fn is_named() {
                    // A sanitizer ends the process before the driver looks at what was overwritten.
                    if cfg!(sanitized) && $rule == "memory" {
                        return;
                    }
                    let path = concat!(module_path!(), "::breaks");
                    let run = run("", &[path.split_once("::").map_or(path, |(_, path)| path).to_owned()]);
                    let named = run.broken.iter().any(|line| line.starts_with(concat!($rule, ": ")) && line.contains($part));
                    assert!(run.passed && named, "{run:#?}");
                }
            }
        )*
    };
}

/// The name of what a call fails with.
fn code(outcome: Result<(), DriverError>) -> String {
    outcome.map_or_else(|error| format!("{:?}", error.0), |()| "CUDA_SUCCESS".to_owned())
}

planted! {
    no_context: "context", "cuMemAlloc_v2 without a current context", || {
        Raw::open();
        let other = std::thread::spawn(|| {
            // SAFETY: refused.
            code(unsafe { result::malloc_sync(64) }.map(drop))
        });
        assert_eq!(other.join().expect("no panic"), "CUDA_ERROR_INVALID_CONTEXT");
    };
    no_initialisation: "initialisation", "cuDeviceGetCount before cuInit", || {
        assert_eq!(code(result::device::get_count().map(drop)), "CUDA_ERROR_NOT_INITIALIZED");
    };
    waiting_in_a_capture: "capture", "cuStreamSynchronize of a stream that is capturing", || {
        let raw = Raw::open();
        // SAFETY: the streams are alive.
        unsafe {
            let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
            stream::begin_capture(raw.streams[0], mode).expect("a capture");
            assert_eq!(code(stream::synchronize(raw.streams[0])), "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED");
            let ended = stream::end_capture(raw.streams[0]).map(drop);
            assert_eq!(code(ended), "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED");
        }
    };
    allocating_in_a_capture: "capture", "cuMemAlloc_v2 while this thread captures", || {
        let raw = Raw::open();
        // SAFETY: the streams are alive.
        unsafe {
            let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
            stream::begin_capture(raw.streams[0], mode).expect("a capture");
            assert_eq!(code(result::malloc_sync(64).map(drop)), "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED");
        }
    };
    an_event_never_recorded: "event", "never recorded", || {
        let raw = Raw::open();
        let event = event::create(PLAIN).expect("an event");
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: stream and event are alive.
        assert_eq!(code(unsafe { stream::wait_event(raw.streams[0], event, flags) }), "CUDA_ERROR_INVALID_VALUE");
    };
    memory_freed_before: "use after free", "free is enqueued already", || {
        let raw = Raw::open();
        let at = raw.memory(64);
        // SAFETY: refused before anything is touched.
        unsafe {
            result::free_async(at, raw.streams[0]).expect("freed");
            assert_eq!(code(result::memset_d8_async(at, 1, 64, raw.streams[0])), "CUDA_ERROR_INVALID_VALUE");
        }
    };
    memory_freed_beside: "use after free", "another stream still has to fill", || {
        let raw = Raw::open();
        let at = raw.memory(64);
        // SAFETY: the driver keeps the memory until the streams are done.
        unsafe {
            stream::synchronize(raw.streams[0]).expect("waited");
            result::memset_d8_async(at, 1, 64, raw.streams[1]).expect("enqueued");
            result::memset_d8_async(at, 1, 64, raw.streams[1]).expect("enqueued");
            let mut outcomes = Vec::new();
            result::free_async(at, raw.streams[0]).expect("freed");
            outcomes.push(code(stream::synchronize(raw.streams[0])));
            assert!(outcomes.contains(&"CUDA_ERROR_ILLEGAL_ADDRESS".to_owned()), "{outcomes:?}");
        }
    };
    memory_not_allocated_yet: "use before allocation", "has not come to that", || {
        let raw = Raw::open();
        let at = raw.memory(64);
        // SAFETY: the driver has the memory.
        unsafe {
            result::memset_d8_async(at, 1, 64, raw.streams[1]).expect("enqueued");
            // The first stream may get on meanwhile, or not: some of many tries find it behind.
            let mut outcome = code(stream::synchronize(raw.streams[1]));
            for _ in 0..20 {
                if outcome != "CUDA_SUCCESS" {
                    break;
                }
                let at = raw.memory(64);
                result::memset_d8_async(at, 1, 64, raw.streams[1]).expect("enqueued");
                outcome = code(stream::synchronize(raw.streams[1]));
            }
            assert_eq!(outcome, "CUDA_ERROR_ILLEGAL_ADDRESS");
        }
    };
    a_pageable_source: "pageable memory", "reads from it later", || {
        let raw = Raw::open();
        let (at, bytes) = (raw.memory(64), [1u8; 64]);
        // SAFETY: refused.
        assert_eq!(code(unsafe { result::memcpy_htod_async(at, &bytes, raw.streams[0]) }), "CUDA_ERROR_INVALID_VALUE");
    };
    nothing_to_fill: "empty", "cuMemsetD8Async of 0 bytes", || {
        let raw = Raw::open();
        let at = raw.memory(64);
        // SAFETY: refused.
        assert_eq!(code(unsafe { result::memset_d8_async(at, 1, 0, raw.streams[0]) }), "CUDA_ERROR_INVALID_VALUE");
    };
    a_range_beyond_its_memory: "range", "65 bytes", || {
        let raw = Raw::open();
        let at = raw.memory(64);
        // SAFETY: refused.
        assert_eq!(code(unsafe { result::memset_d8_async(at, 1, 65, raw.streams[0]) }), "CUDA_ERROR_INVALID_VALUE");
    };
    a_stream_destroyed_twice: "handle", "cuStreamDestroy_v2: no such stream", || {
        let raw = Raw::open();
        // SAFETY: refused the second time.
        unsafe {
            stream::destroy(raw.streams[1]).expect("destroyed");
            assert_eq!(code(stream::destroy(raw.streams[1])), "CUDA_ERROR_INVALID_HANDLE");
        }
    };
    a_graph_used_after_its_end: "handle", "cuGraphLaunch: no such executable graph", || {
        let raw = Raw::open();
        // SAFETY: refused after the end.
        unsafe {
            let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
            stream::begin_capture(raw.streams[0], mode).expect("a capture");
            let captured = stream::end_capture(raw.streams[0]).expect("a graph");
            let executable = graph::instantiate(captured, sys::CUgraphInstantiate_flags(0)).expect("an executable graph");
            graph::exec_destroy(executable).expect("destroyed");
            assert_eq!(code(graph::launch(executable, raw.streams[0])), "CUDA_ERROR_INVALID_HANDLE");
        }
    };
    a_leaked_event: "leak", "1 events", || {
        let raw = Raw::open();
        event::create(PLAIN).expect("an event");
        // SAFETY: nothing uses them after that.
        unsafe {
            for stream in raw.streams {
                stream::destroy(stream).expect("destroyed");
            }
            primary_ctx::release(0).expect("released");
        }
    };
    pinned_memory_freed_too_soon: "pinned memory", "still has to copy from the device", || {
        let raw = Raw::open();
        let at = raw.memory(64);
        // SAFETY: the copy never runs.
        unsafe {
            let host = result::malloc_host(64, 0).expect("memory");
            let target = std::slice::from_raw_parts_mut(host.cast::<u8>(), 64);
            result::memcpy_dtoh_async(target, at, raw.streams[0]).expect("enqueued");
            result::free_host(host).expect("freed");
        }
    };
    a_block_too_large: "launch", "of 2048 threads", || {
        let device = crate::cuda::driver::CudaDevice::open(0).expect("a device");
        let launch = Launch { symbol: "checksum_f32", grid: [1; 3], block: 2048, shared: 0 };
        // SAFETY: refused.
        let error = unsafe { device.launch(&launch, &[0; 24]) }.expect_err("refused");
        assert!(error.to_string().contains("CUDA_ERROR_INVALID_VALUE"), "{error}");
    };
    too_much_shared_memory: "shared memory", "checksum_f32", || {
        let device = crate::cuda::driver::CudaDevice::open(0).expect("a device");
        let launch = Launch { symbol: "checksum_f32", grid: [1; 3], block: 32, shared: 200 << 10 };
        // SAFETY: refused.
        let error = unsafe { device.launch(&launch, &[0; 24]) }.expect_err("refused");
        assert!(error.to_string().contains("checksum_f32"), "{error}");
    };
    a_kernel_that_writes_too_far: "memory", "wrote after an allocation of 8 bytes", || {
        let device = crate::cuda::driver::CudaDevice::open(0).expect("a device");
        let memory = || device.allocate(8).expect("memory");
        let (x, weight, out) = (memory(), memory(), memory());
        // SAFETY: all of the memory.
        let zeros = unsafe { device.fill(x, 0, 8).and_then(|()| device.fill(weight, 0, 8)) };
        zeros.expect("enqueued");
        let (input, output) = (crate::Dtype::F32, crate::Dtype::F32);
        let activation = crate::backend::Activation::None;
        let gemm = cuda::Gemm { rows: 2, n: 2, k: 1, out_stride: 2, input, output, x, weight, x_scales: 0, weight_scales: 0, bias: 0, activation, out };
        let (launch, arguments) = cuda::gemm::product(&gemm, cuda::gemm::Tile::Square32).expect("arguments");
        // SAFETY: the fake driver's memory has room for what is written too far.
        unsafe { device.launch(&launch, bytemuck::bytes_of(&arguments)) }.expect("enqueued");
        let error = device.synchronize().expect_err("found");
        assert!(error.to_string().contains("CUDA_ERROR_ILLEGAL_ADDRESS"), "{error}");
    };
}
