//! Launcher of `kernels/scheduled_sampling.cu`: gold tokens, or the model's own picks where a coin says so.

use bytemuck::{Pod, Zeroable};

use super::buffer::{View, ViewMut};
use super::context::{Context, check_len, to_u32};
use super::contrastive::check_stride;
use super::element::{Element, symbol};
use super::layout::{Layout, layout};
use super::{Launch, is_vectorizable};
use crate::backend::{Pick, Schedule, ScheduledSampling, TokenPlace};
use crate::{Error, Result};

const OPERATION: &str = "scheduled_sampling";
const THREADS: u32 = 512;

/// Chooses a token for each row: its gold token, or the model's pick. Rows that keep gold by their coin read no logit.
///
/// A pick is refused, and gold kept, if it is end of sentence where gold is not, if nothing is above -infinity, or if NaN or
/// +infinity is among the logits. Padding stays.
pub struct Selection<'a, T> {
    /// `[rows, stride]`: the model's logits for the token whose gold is `gold`.
    pub logits: View<'a, T>,
    /// `[rows]`.
    pub gold: View<'a, u32>,
    /// `[rows]`: what each row's random numbers depend on.
    pub places: View<'a, TokenPlace>,
    /// `[1]`.
    pub schedule: View<'a, Schedule>,
    /// `[rows]`.
    pub chosen: ViewMut<'a, u32>,
    /// `[2]`: grow by the rows that take a pick, be it gold or not, and by those refused for NaN or +infinity.
    pub counts: ViewMut<'a, u32>,
}

/// Mirrors `ScheduledSamplingArguments`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Arguments {
    logits: u64,
    gold: u64,
    places: u64,
    schedule: u64,
    chosen: u64,
    counts: u64,
    vocab_size: u32,
    stride: u32,
    vectorized: u32,
    seed_low: u32,
    seed_high: u32,
    samples: u32,
    temperature: f32,
    eos_id: u32,
    pad_id: u32,
    decoder_start_id: u32,
}

/// What [`layout`](super::layout) compares with the kernel file.
pub(super) const LAYOUTS: &[Layout] = &[layout!(Arguments as "ScheduledSamplingArguments" {
    logits, gold, places, schedule, chosen, counts, vocab_size, stride, vectorized, seed_low, seed_high,
    samples, temperature, eos_id, pad_id, decoder_start_id
})];

impl<T: Element> Selection<'_, T> {
    /// Enqueues the kernel for `gold.len()` rows of `vocab_size` logits, `stride` elements apart.
    ///
    /// # Errors
    /// A tensor of a size that does not fit; a temperature that is not above 0; the device failed.
    pub fn launch(self, context: &Context, run: &ScheduledSampling, vocab_size: usize, stride: usize) -> Result<()> {
        self.launch_with(context, run, vocab_size, stride, THREADS)
    }

    /// As [`Selection::launch`], with blocks of `threads`, a multiple of 32.
    pub(crate) fn launch_with(
        self,
        context: &Context,
        run: &ScheduledSampling,
        vocab_size: usize,
        stride: usize,
        threads: u32,
    ) -> Result<()> {
        let rows = self.gold.len();
        check_stride(OPERATION, vocab_size, stride)?;
        check_len(OPERATION, "logits", rows * stride, self.logits.len())?;
        check_len(OPERATION, "places", rows, self.places.len())?;
        check_len(OPERATION, "schedule", 1, self.schedule.len())?;
        check_len(OPERATION, "chosen", rows, self.chosen.len())?;
        check_len(OPERATION, "counts", 2, self.counts.len())?;
        let (samples, temperature) = match run.pick {
            Pick::Argmax => (0, 1.0),
            Pick::Sample { temperature } => (1, check_temperature(temperature)?),
        };
        if rows == 0 {
            return Ok(());
        }
        let logits = context.address(&self.logits)?;
        let arguments = Arguments {
            logits,
            gold: context.address(&self.gold)?,
            places: context.address(&self.places)?,
            schedule: context.address(&self.schedule)?,
            chosen: context.address_mut(&self.chosen)?,
            counts: context.address_mut(&self.counts)?,
            vocab_size: to_u32(OPERATION, "vocab_size", vocab_size)?,
            stride: to_u32(OPERATION, "stride", stride)?,
            vectorized: is_vectorizable::<T>(stride, &[logits]).into(),
            seed_low: run.seed as u32,
            seed_high: (run.seed >> 32) as u32,
            samples,
            temperature,
            eos_id: run.ids.eos_id,
            pad_id: run.ids.pad_id,
            decoder_start_id: run.ids.decoder_start_id,
        };
        let grid = [to_u32(OPERATION, "rows", rows)?, 1, 1];
        let launch = Launch { symbol: symbol!("scheduled_sampling", T), grid, block: threads, shared: 0 };
        // SAFETY: mirrors `scheduled_sampling_<dtype>(ScheduledSamplingArguments)`. There is a block for each row; it reads its row's `vocab_size`
        // logits, which `stride` holds, and writes its own element of `chosen`; `counts` has both its words; lengths were checked
        // above; what is written is borrowed mutably.
        unsafe { context.launch(&launch, &arguments) }
    }
}

fn check_temperature(temperature: f32) -> Result<f32> {
    if temperature > 0.0 && temperature.is_finite() {
        return Ok(temperature);
    }
    let expected = "a finite number above 0".to_owned();
    Err(Error::Option { option: "temperature", expected, got: temperature.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::testing::device_tests;
    use crate::validate::kernels::scheduled_sampling::{self as cases, IDS, Rows, Spread};
    use crate::validate::probe::assert_all_pass;

    fn refused_picks_keep_gold(context: &Context) -> Result<()> {
        let (nan, inf) = (f32::NAN, f32::INFINITY);
        let rows = [
            // The start token (4) and padding (9) are best, then 1 and 3 tie; zeros of either sign tie.
            (6, [0.0, 3.0, 0.0, 3.0, 8.0, 0.0, 0.0, 0.0, 0.0, 9.0], 1),
            (6, [-0.0, 0.0, -1.0, 0.0, 8.0, -1.0, -1.0, -1.0, -1.0, nan], 0),
            // End of sentence (2) before the gold end, and at it.
            (6, [0.0, 3.0, 5.0, 3.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], 6),
            (2, [0.0, 3.0, 5.0, 3.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], 2),
            (6, [-inf, -inf, -inf, -inf, 1.0, -inf, -inf, -inf, -inf, 1.0], 6),
            (6, [0.0, 3.0, 0.0, 3.0, 0.0, 0.0, 0.0, nan, 0.0, 0.0], 6),
            (6, [0.0, 3.0, 0.0, 3.0, 0.0, 0.0, 0.0, inf, 0.0, 0.0], 6),
            (9, [nan; 10], 9),
        ];
        let mut case = Rows::<f32>::new([rows.len(), 10, 10], Pick::Argmax, 0.0, Spread::Ties, 32);
        case.gold = rows.iter().map(|row| row.0).collect();
        case.logits = rows.iter().flat_map(|row| row.1).collect();
        let (chosen, counts, ..) = case.launch(context, false)?;
        assert_eq!(chosen, rows.map(|row| row.2));
        assert_eq!(counts, [10 + 3, 100 + 2]);
        case.run.pick = Pick::Sample { temperature: 1.0 };
        let (chosen, counts, ..) = case.launch(context, false)?;
        assert_eq!((chosen, counts), case.reference());
        Ok(())
    }

    fn gold_rows_read_no_logit(context: &Context) -> Result<()> {
        for (gold_probability, pick) in
            [(0.0, Pick::Argmax), (0.5, Pick::Argmax), (0.5, Pick::Sample { temperature: 1.0 }), (1.0, Pick::Argmax)]
        {
            let mut case = Rows::<f32>::new([61, 128, 128], pick, gold_probability, Spread::Ties, 64);
            // Nothing else than the coin, so that the count tells the rows.
            case.gold = vec![7; 61];
            case.run.ids.eos_id = 1000;
            let (_, counts, bytes, _) = case.launch(context, true)?;
            let picked = u64::from(counts[0] - 10);
            assert_eq!(bytes, picked * 128 * 4);
            assert!(gold_probability != 0.5 || (15..46).contains(&picked), "{picked} of 61 at one half");
        }
        let mut padding = Rows::<f32>::new([5, 16, 16], Pick::Argmax, 0.0, Spread::Ties, 32);
        padding.gold = vec![IDS.pad_id; 5];
        let (chosen, counts, bytes, _) = padding.launch(context, true)?;
        assert_eq!((chosen, counts, bytes), (vec![IDS.pad_id; 5], vec![10, 100], 0));
        Ok(())
    }

    fn wrong_arguments_are_refused(context: &Context) -> Result<()> {
        let refused = |case: &Rows<f32>| case.launch(context, false).err().map(|error| error.to_string());
        let mut case = Rows::<f32>::new([3, 16, 16], Pick::Sample { temperature: 0.0 }, 0.5, Spread::Ties, 32);
        assert_eq!(refused(&case).as_deref(), Some("option temperature: expected a finite number above 0, got 0"));
        case.run.pick = Pick::Argmax;
        case.logits.pop();
        assert_eq!(
            refused(&case).as_deref(),
            Some(
                "scheduled_sampling: logits: expected a stride of at least vocab_size, which is at least 1, got 16 tokens, 15 apart"
            )
        );
        Ok(())
    }

    device_tests! {
        f32: |context| assert_all_pass(context, OPERATION, cases::check_as::<f32>);
        f16: |context| assert_all_pass(context, OPERATION, cases::check_as::<half::f16>);
        bf16: |context| assert_all_pass(context, OPERATION, cases::check_as::<half::bf16>);
        bad_values: refused_picks_keep_gold;
        shapes: wrong_arguments_are_refused;
    }

    /// Mirrors `PhiloxArguments` in kernels/host/tests/philox.cu.
    #[cfg(all(emulated, feature = "planted-kernels"))]
    #[repr(C)]
    #[derive(Clone, Copy, Pod, Zeroable)]
    struct PhiloxArguments {
        counters: u64,
        words: u64,
        uniforms: u64,
        n: u32,
        key: [u32; 2],
        unused: u32,
    }

    /// The kernels' random words and uniform numbers are the CPU's, to the bit.
    #[cfg(all(emulated, feature = "planted-kernels"))]
    fn philox_is_the_cpus(context: &Context) -> Result<()> {
        use crate::cpu::philox::{open_uniform, philox, uniform};
        let key = 0x299f_31d0_a409_3822;
        let mut counters = vec![[0; 4], [u32::MAX; 4], [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344]];
        counters.extend((0..97u32).map(|i| [i, i * i, 7 * i + 1, (i % 2) << 28 | i]));
        let n = counters.len();
        let device_counters = context.upload(&counters)?;
        let (words, uniforms) = (context.zeros::<[u32; 4]>(n)?, context.zeros::<[f32; 2]>(n)?);
        let arguments = PhiloxArguments {
            counters: context.address(&device_counters.view())?,
            words: context.address(&words.view())?,
            uniforms: context.address(&uniforms.view())?,
            n: n as u32,
            key: [key as u32, (key >> 32) as u32],
            unused: 0,
        };
        let launch = Launch { symbol: "planted_philox", grid: [2, 1, 1], block: 64, shared: 0 };
        // SAFETY: mirrors `planted_philox(PhiloxArguments)`; all three hold `n` elements, and no view of them is in use.
        unsafe { context.launch(&launch, &arguments)? };
        let expected: Vec<[u32; 4]> = counters.iter().map(|counter| philox(key, *counter)).collect();
        assert_eq!(expected[2], [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]);
        assert_eq!(context.download(words.view())?, expected);
        let numbers: Vec<[f32; 2]> = expected.iter().map(|words| [uniform(words[0]), open_uniform(words[0])]).collect();
        assert_eq!(context.download(uniforms.view())?, numbers);
        Ok(())
    }

    #[cfg(all(emulated, feature = "planted-kernels"))]
    #[test]
    fn random_words() {
        crate::cuda::testing::run_emulated(philox_is_the_cpus);
    }

    /// Counting reads takes the emulator.
    #[test]
    #[cfg_attr(not(emulated), ignore = "needs a C++ compiler")]
    fn reads() {
        crate::cuda::testing::run_emulated(gold_rows_read_no_logit);
    }
}
