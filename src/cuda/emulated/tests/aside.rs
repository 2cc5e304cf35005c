//! The second stream.

use super::super::EmulatedDevice;
use crate::Result;
use crate::cuda::{Buffer, Context};

/// What a fill aside and a copy on the first stream come to, in the order in which they are enqueued: the values copied before and
/// behind the join.
fn race(context: &Context, shared: &mut Buffer<u8>) -> Result<[u8; 2]> {
    let (mut before, mut behind) = (context.zeros::<u8>(1)?, context.zeros::<u8>(1)?);
    context.fill(shared.view_mut(), 1)?;
    context.aside(|| context.fill(shared.view_mut(), 2))?;
    context.copy(shared.view(), before.view_mut())?;
    context.join_aside()?;
    context.copy(shared.view(), behind.view_mut())?;
    Ok([context.download(before.view())?[0], context.download(behind.view())?[0]])
}

#[test]
fn work_aside_may_run_early_or_late_but_is_done_at_the_join() -> Result<()> {
    let context = Context::new(Box::new(EmulatedDevice::new(1)?));
    let mut shared = context.zeros(1)?;
    let outcomes = [race(&context, &mut shared)?, race(&context, &mut shared)?];
    assert_eq!(outcomes, [[2, 2], [1, 2]], "both orders that a GPU may take are tried in turn");
    Ok(())
}

#[test]
fn whatever_waits_or_frees_waits_for_the_work_aside_too() -> Result<()> {
    let context = Context::new(Box::new(EmulatedDevice::new(1)?));
    for _ in 0..2 {
        let (mut shared, mut other) = (context.zeros::<u8>(1)?, context.zeros::<u8>(1)?);
        context.aside(|| context.fill(shared.view_mut(), 2))?;
        assert_eq!(context.download(shared.view())?, [2]);
        // Late work on freed memory would be an error.
        context.aside(|| context.fill(other.view_mut(), 3))?;
        drop(other);
        context.synchronize()?;
    }
    Ok(())
}

#[test]
fn work_aside_may_neither_wait_nor_allocate_nor_be_captured() -> Result<()> {
    let context = Context::new(Box::new(EmulatedDevice::new(1)?));
    let buffer = context.zeros::<u8>(1)?;
    let refused = |outcome: Result<()>| outcome.err().map(|error| error.to_string()).unwrap_or_default();
    let works: [&dyn Fn() -> Result<()>; 4] = [
        &|| context.download(buffer.view()).map(drop),
        &|| context.synchronize(),
        &|| context.allocate::<u8>(1).map(drop),
        &|| context.aside(|| Ok(())),
    ];
    for work in works {
        let message = refused(context.aside(work));
        assert!(message.contains("work aside may only be enqueued"), "{message}");
    }
    // And the device is none the worse.
    assert_eq!(context.download(buffer.view())?, [0]);
    Ok(())
}
