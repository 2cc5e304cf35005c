// One step of the search in every live slot: log-softmax, cumulative scores, the best 2K of K * V candidates, end of sentence
// and the finished set, histories, ancestry, coverage, the stop rule, and the list of rows that the next step computes. One
// launch, one read of the logits. The contract is `beam_step` in src/backend/search_ops.rs.
//
// A slot that ranks another distribution reads that as well, for its candidates; a slot that samples reads its picks alone; one with
// constraints reads the banks of its rows.
//
// Shapes: logits and ranked [rows, vocab_size], rows logits_stride apart, and attention [rows, max_src_len], f32, in the order of
// the row list; bans [rows, ceil(vocab_size / 32)]; the state as in search_state.cuh; per row and chunk of the vocabulary,
// candidates [2K + 1] and stats [2].
// Parallelisation: a block per (live slot, beam, chunk of 32 logits a thread). It keeps its chunk in registers, reduces it to a
// log-sum, and picks the chunk's best 2K: the threads' own maxima give a bar that few others pass. The slot's last block merges
// the chunks and carries out the ranking; the last slot's rebuilds the row list. Blocks beyond the live slots return at once:
// slots end during a launch, but none starts, so it does not matter whether they read the list before or after its rebuild.
// Order: score, then the lower beam * vocab_size + token, whatever the order of blocks. Before the row's normaliser is known a
// chunk can only be ranked by logit. That is the order by score, except that different logits may round to equal scores, and
// the lower index then wins. So each chunk keeps one candidate more, and where that one's score equals the last score that
// is ranked, the slot's last block ranks that chunk again, by score; nothing else is ever read twice.
// Numerics: f32; sums in an order that depends on vocabulary and block size alone, so a slot's bits do not depend on the others.
// Tickets are integers. NaN or +infinity in a row ends its slot, which takes no part from then on.
// Parts: beam_step_state.cuh (what all share), beam_step_rank.cuh, beam_step_banks.cuh (constraints), beam_step_apply.cuh.
// Reference: src/cpu/beam_step.rs
#include "beam_step_apply.cuh"
#include "beam_step_banks.cuh"
#include "beam_step_rank.cuh"

// Puts what the slot's samples have drawn where a ranking stands, one per live beam; the first beam that cannot be ranked, or
// `live`. By a whole block.
__device__ __forceinline__ unsigned take_picks(const BeamStepArguments& a, const Step& step, Workspace& w) {
    const Search& s = a.search;
    const std::size_t first = static_cast<std::size_t>(step.slot) * s.beams;
    for (unsigned beam = threadIdx.x; beam < step.live; beam += blockDim.x) {
        const SamplePick pick = s.picks[first + beam];
        const bool is_there = pick.token != NO_TOKEN;
        const float cum = s.cum_log_probs[first + beam];
        w.cum[beam] = cum;
        w.best[beam] = static_cast<Key>(ordered_bits(is_there ? cum + pick.ranked_log_prob : cum)) << 32 |
                       static_cast<unsigned>(~(beam * s.vocab_size + (is_there ? pick.token : 0)));
        w.best_logit[beam] = pick.log_prob;
        // As for a ranking: what is neither below +infinity cannot be ranked, and is not subtracted from anything.
        w.normalizer[beam] = Normalizer{is_there || pick.log_prob == -INFINITY ? 0.0f : pick.log_prob, 0.0f};
    }
    __syncthreads();
    return first_bad(step, w);
}

// The slot's step, all its chunks being done. By a whole block.
__device__ __forceinline__ void take_step(const BeamStepArguments& a, const Step& step, Workspace& w, Key* keys) {
    const Search& s = a.search;
    const unsigned bad = step.is(SAMPLES) ? take_picks(a, step, w) : load_beams(a, step, w);
    if (bad < step.live) {
        if (threadIdx.x != 0) return;
        const unsigned value = isnan(w.normalizer[bad].max) ? 0x7FC00000u : 0x7F800000u;
        s.failures[step.slot] = Failure{1, step.before + 1, bad, value};
        s.live[step.slot] = 0;
        return;
    }
    unsigned count = step.live;
    if (!step.is(SAMPLES)) {
        count = step.is(CONSTRAINED) ? rank_banks(a, step, w, keys) : rank_groups(a, step, w, keys);
        find_logits(a, step, count, w);
    }
    split(a, step, count, w);
    const unsigned finished = finish(a, step, w);
    extend(a, step, w, keys);
    if (threadIdx.x != 0) return;
    const SlotOptions& options = s.options[step.slot];
    const Finished* set = s.finished + static_cast<std::size_t>(step.slot) * s.beams;
    bool over = w.num_extending == 0 || step.is(CUTS);
    const unsigned needed = options.patience == 0 ? step.beams : options.patience;
    if (!over && !step.is(SAMPLES) && finished >= needed && options.stop == TOP) {
        over = key_index(w.best[0]) % s.vocab_size == s.eos_id;
        for (unsigned i = 0; i < finished; ++i) over |= set[i].has_eos == 2;
    } else if (!over && !step.is(SAMPLES) && finished >= needed) {
        Key best = w.best[w.extending[0]];
        for (unsigned i = 1; (step.is(GROUPED) || step.is(CONSTRAINED)) && i < w.num_extending; ++i) best = max(best, w.best[w.extending[i]]);
        const float best_live = key_number(best);
        over = set[needed - 1].score >= stop_bound(options, best_live, step.before + 1);
    }
    s.finished_count[step.slot] = finished;
    s.step[step.slot] = step.before + 1;
    s.live[step.slot] = over ? 0 : w.num_extending;
}

__device__ void beam_step(const BeamStepArguments& a) {
    DYNAMIC_SHARED(Key, keys);
    SHARED(Workspace, workspace, 1);
    Workspace& w = workspace[0];
    const Search& s = a.search;
    const unsigned chunk = blockIdx.x % a.chunks, beam = blockIdx.x / a.chunks % s.beams;
    const unsigned place = blockIdx.x / a.chunks / s.beams, num_live = *s.num_live;
    if (place >= num_live) return;
    const Step step = make_step(s, place);
    if (beam < step.live && !step.is(SAMPLES)) rank_chunk(a, step, beam, chunk, w, keys);
    // Blocks of beams that do not live count too: they have read `live` before it changes.
    if (!is_last_block(a.tickets + step.slot, a.chunks * s.beams, &w.flag)) return;
    take_step(a, step, w, keys);
    if (!is_last_block(a.ticket, num_live, &w.flag)) return;
    rebuild_rows(s, w.maxima);
}

// ---- Starting ----

struct StartSlotsArguments {
    Search search;
    const unsigned* starts;  // per slot to start: slot, SlotOptions
    unsigned* ticket;        // [1]
    unsigned count;
    unsigned unused;
};

// A block per slot to start; the last one rebuilds the row list.
__device__ void start_slots(const StartSlotsArguments& a) {
    SHARED(Key, scratch, 32);
    SHARED(unsigned, flag, 1);
    const Search& s = a.search;
    constexpr unsigned OPTION_WORDS = sizeof(SlotOptions) / sizeof(unsigned);
    if (blockIdx.x < a.count) {
        const unsigned* start = a.starts + blockIdx.x * (1 + OPTION_WORDS);
        const unsigned slot = start[0];
        unsigned* options = reinterpret_cast<unsigned*>(s.options + slot);
        for (unsigned i = threadIdx.x; i < OPTION_WORDS; i += blockDim.x) options[i] = start[1 + i];
        float* coverage = s.coverage + static_cast<std::size_t>(slot) * s.beams * s.max_src_len;
        for (unsigned i = threadIdx.x; i < s.beams * s.max_src_len; i += blockDim.x) coverage[i] = 0.0f;
        for (unsigned beam = threadIdx.x; beam < s.beams; beam += blockDim.x) s.cum_log_probs[slot * s.beams + beam] = 0.0f;
        __syncthreads();
        if (threadIdx.x == 0) {
            s.live[slot] = s.options[slot].strategy == SAMPLE ? s.options[slot].beam_size : max(s.options[slot].groups, 1u);
            s.failures[slot] = Failure{0, 0, 0, 0};
            s.step[slot] = 0;
            s.finished_count[slot] = 0;
        }
    }
    if (!is_last_block(a.ticket, gridDim.x, flag)) return;
    rebuild_rows(s, scratch);
}

KERNEL_BOUNDED(beam_step_f32, 128, 3, BeamStepArguments, beam_step)
KERNEL(start_slots_f32, 128, StartSlotsArguments, start_slots)

LAYOUT(FIELDS(ContrastiveOptions, form, scorer, weight, log_mask, temperature)
       FIELDS(SampleOptions, seed_low, seed_high, temperature, top_k, top_p, min_p, epsilon)
       FIELDS(SamplePick, token, log_prob, ranked_log_prob)
       FIELDS(SlotOptions, beam_size, length_penalty, alpha, coverage_penalty, word_reward, stop, min_len, max_len,
              forced_eos, free_first, renormalize, src_len, strategy, cut, patience, finish, banned, prefix_len,
              no_repeat_ngram, ranked, repetition_penalty, penalizes_logits, takes_pad, counts_start, contrast,
              ensemble, groups, diversity, constraints, start, sampling)
       FIELDS(Finished, score, search_log_prob, coverage_penalty, eos_log_prob, length, beam, has_eos, truncated)
       FIELDS(Failure, failed, step, beam, value)
       FIELDS(Constraints, phrases, num_tokens, ends, ids, tokens)
       FIELDS(Search, options, step, live, cum_log_probs, tokens, parents, log_probs, ancestry, coverage,
              kept_attention, finished, finished_count, failures, rows, row_count, live_slots, first_row, num_live,
              ranked, bans, picks, constraints, banks, slots, beams, max_len, max_src_len, vocab_size, eos_id, pad_id,
              decoder_start_id)
       FIELDS(BeamStepArguments, search, logits, attention, candidates, stats, tickets, ticket, logits_stride, chunks,
              capacity, vectorized)
       FIELDS(StartSlotsArguments, search, starts, ticket, count, unused)
       CONSTANT("LengthPenaltyKind::Gnmt", GNMT)
       CONSTANT("LengthPenaltyKind::Power", POWER)
       CONSTANT("LengthPenaltyKind::PowerOfAll", POWER_OF_ALL)
       CONSTANT("StopKind::First", FIRST)
       CONSTANT("StopKind::Heuristic", HEURISTIC)
       CONSTANT("StopKind::Top", TOP)
       CONSTANT("FinishKind::Shrink", SHRINK)
       CONSTANT("Strategy::Sample", SAMPLE)
       CONSTANT("ContrastiveForm::Logits", LOGITS)
       CONSTANT("ContrastiveForm::Li", LI)
       CONSTANT("ContrastiveForm::Obrien", OBRIEN)
       CONSTANT("ContrastiveForm::Source", SOURCE)
       CONSTANT("MAX_BEAMS", MAX_BEAMS)
       CONSTANT("MAX_SCORERS", MAX_SCORERS)
       CONSTANT("MAX_CONSTRAINT_TOKENS", MAX_CONSTRAINT_TOKENS)
       CONSTANT("BANK_WORDS", BANK_WORDS)
       CONSTANT("SamplePick::NONE", NO_TOKEN)
       CONSTANT("beam_step::THREADS", MAX_THREADS)
       CONSTANT("beam_step::ELEMENTS", CHUNK_ELEMENTS))
