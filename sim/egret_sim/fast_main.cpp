// Plays a job of egret_sim.fast on a Verilated accelerator top, a clock cycle a loop, and writes what
// came out. Files are little-endian 32-bit words; their layout is in egret_sim/fast.py.
//
// Inputs change while the clock is low; what is read is what the next rising edge sees.

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <type_traits>
#include <vector>

#include "Vfast.h"
#include "verilated.h"

namespace {

using Word = uint32_t;

// Sets a port of any width from words, lowest first.
template <typename Port>
void set(Port& port, const Word* words) {
    if constexpr (std::is_integral_v<Port>) {
        uint64_t value = words[0];
        if constexpr (sizeof(Port) > 4) value |= uint64_t{words[1]} << 32;
        port = static_cast<Port>(value);
    } else {
        for (size_t place = 0; place < sizeof(Port) / sizeof(Word); ++place) {
            port[place] = words[place];
        }
    }
}

class Reader {
  public:
    explicit Reader(const char* path) {
        std::FILE* file = std::fopen(path, "rb");
        if (file == nullptr) std::exit(2);
        std::fseek(file, 0, SEEK_END);
        words_.resize(static_cast<size_t>(std::ftell(file)) / sizeof(Word));
        std::rewind(file);
        if (std::fread(words_.data(), sizeof(Word), words_.size(), file) != words_.size()) {
            std::exit(2);
        }
        std::fclose(file);
    }
    Word next() { return words_.at(place_++); }
    const Word* take(size_t count) {
        const Word* first = words_.data() + place_;
        place_ += count;
        if (place_ > words_.size()) std::exit(2);
        return first;
    }

  private:
    std::vector<Word> words_;
    size_t place_ = 0;
};

// Decides in which cycles a stream pauses: xorshift32, a byte of it against the threshold.
class Pauses {
  public:
    Pauses(Word seed, Word threshold) : state_(seed), threshold_(threshold) {}
    bool now() {
        if (threshold_ == 0) return false;
        state_ ^= state_ << 13;
        state_ ^= state_ >> 17;
        state_ ^= state_ << 5;
        return (state_ >> 24) < threshold_;
    }

  private:
    Word state_;
    Word threshold_;
};

// A stream's beats: `last`, then the data.
struct Source {
    const Word* beats;
    Word count;
    Word words;  // of data in each beat
    Pauses pauses;
    Word sent = 0;
    bool offered = false;

    const Word* beat() const { return beats + size_t{sent} * (words + 1); }
    void decide() {
        if (!offered) offered = sent < count && !pauses.now();
    }
    void taken() {
        ++sent;
        offered = false;
    }
};

struct Harness {
    VerilatedContext context;
    Vfast top{&context};
    Word cycle = 0;

    void rise() {
        top.aclk = 1;
        top.eval();
        ++cycle;
    }
    void fall() {
        top.aclk = 0;
        top.eval();
    }
    void tick() {
        fall();
        rise();
    }
    void reset() {
        top.aresetn = 0;
        for (int cycles = 0; cycles < 4; ++cycles) tick();
        top.aresetn = 1;
    }
    // Ticks until a port is high; false when it stays low.
    template <typename Port>
    bool wait(Port& port) {
        for (int left = 1000; left > 0; --left) {
            fall();
            const bool high = port;
            rise();
            if (high) return true;
        }
        return false;
    }
    bool write(Word address, Word value) {
        top.s_axil_awvalid = top.s_axil_bready = 1;
        top.s_axil_awaddr = address;
        const bool addressed = wait(top.s_axil_awready);
        top.s_axil_awvalid = 0;
        top.s_axil_wvalid = 1;
        top.s_axil_wdata = value;
        top.s_axil_wstrb = 0xF;
        const bool written = addressed && wait(top.s_axil_wready);
        top.s_axil_wvalid = 0;
        const bool done = written && wait(top.s_axil_bvalid);
        top.s_axil_bready = 0;
        return done;
    }
    bool read(Word address, Word& value) {
        top.s_axil_arvalid = top.s_axil_rready = 1;
        top.s_axil_araddr = address;
        const bool addressed = wait(top.s_axil_arready);
        top.s_axil_arvalid = 0;
        bool done = false;
        for (int left = 1000; addressed && !done && left > 0; --left) {
            fall();
            done = top.s_axil_rvalid;
            value = top.s_axil_rdata;
            rise();
        }
        top.s_axil_rready = 0;
        return done;
    }
};

}  // namespace

int main(int argc, char** argv) {
    if (argc != 3) return 2;
    Reader job(argv[1]);
    std::vector<Word> log;
    Harness harness;
    Vfast& top = harness.top;

    const Word phases = job.next(), seed = job.next(), timeout = job.next();
    const Word weight_words = job.next(), activation_words = job.next();
    const Word weight_pauses = job.next(), activation_pauses = job.next();
    Pauses result_pauses(seed + 2, job.next());
    harness.context.randSeed(static_cast<int>(seed));
    harness.context.randReset(2);

    harness.reset();

    bool alive = true;
    for (Word phase = 0; phase < phases && alive; ++phase) {
        for (Word left = job.next(); left > 0; --left) {
            const Word address = job.next();
            alive = harness.write(address, job.next()) && alive;
        }
        const Word packets = job.next(), matrices = job.next(), settle = job.next();
        const Word limit = job.next();
        const bool may_fail = job.next() != 0;
        Source weights{nullptr, job.next(), weight_words, Pauses(seed, weight_pauses)};
        weights.beats = job.take(size_t{weights.count} * (weight_words + 1));
        Source activations{nullptr, job.next(), activation_words,
                           Pauses(seed + 1, activation_pauses)};
        activations.beats = job.take(size_t{activations.count} * (activation_words + 1));

        std::vector<Word> results, done, entered;
        const Word first_cycle = harness.cycle;
        Word seen_packets = 0, quiet = 0, last_event = harness.cycle;
        bool failed = false, cut_off = false;
        while (alive && !cut_off && (limit != 0 || quiet <= settle)) {
            weights.decide();
            activations.decide();
            top.s_axis_weight_tvalid = weights.offered;
            if (weights.offered) {
                top.s_axis_weight_tlast = weights.beat()[0];
                set(top.s_axis_weight_tdata, weights.beat() + 1);
            }
            top.s_axis_act_tvalid = activations.offered;
            if (activations.offered) {
                top.s_axis_act_tlast = activations.beat()[0];
                set(top.s_axis_act_tdata, activations.beat() + 1);
            }
            top.m_axis_out_tready = !result_pauses.now();
            harness.fall();
            if (weights.offered && top.s_axis_weight_tready) {
                if (weights.beat()[0]) entered.push_back(harness.cycle - first_cycle);
                weights.taken();
                last_event = harness.cycle;
            }
            if (activations.offered && top.s_axis_act_tready) {
                activations.taken();
                last_event = harness.cycle;
            }
            if (top.m_axis_out_tvalid && top.m_axis_out_tready) {
                results.push_back(harness.cycle - first_cycle);
                results.push_back(top.m_axis_out_tdata);
                results.push_back(top.m_axis_out_tlast | top.m_axis_out_tuser << 1);
                seen_packets += top.m_axis_out_tlast;
                failed = failed || (top.m_axis_out_tuser && !may_fail);
                last_event = harness.cycle;
            }
            if (top.matrix_done) {
                done.push_back(harness.cycle - first_cycle);
                last_event = harness.cycle;
            }
            const bool complete = weights.sent == weights.count &&
                                  activations.sent == activations.count &&
                                  seen_packets >= packets && done.size() >= matrices;
            quiet = complete || failed ? quiet + 1 : 0;
            alive = harness.cycle - last_event <= timeout || quiet > 0;
            harness.rise();
            cut_off = limit != 0 && harness.cycle - first_cycle >= limit;
        }
        top.s_axis_weight_tvalid = top.s_axis_act_tvalid = 0;
        log.push_back(alive && !failed);
        log.push_back(harness.cycle - first_cycle);
        for (const auto* list : {&entered, &done, &results}) {
            log.push_back(static_cast<Word>(list->size()));
            log.insert(log.end(), list->begin(), list->end());
        }
        if (cut_off) harness.reset();
        for (Word left = job.next(); left > 0; --left) {
            Word value = 0;
            alive = harness.read(job.next(), value) && alive;
            log.push_back(value);
        }
        alive = alive && !failed;
    }
    top.final();
    std::FILE* file = std::fopen(argv[2], "wb");
    if (file == nullptr) return 2;
    const bool whole = std::fwrite(log.data(), sizeof(Word), log.size(), file) == log.size();
    return std::fclose(file) == 0 && whole ? 0 : 2;
}
