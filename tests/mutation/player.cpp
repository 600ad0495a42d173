// Plays a script of egret_sim.benches.accelerator on a Verilated top, once for each mutant asked for,
// and writes what came out. Files are little-endian 32-bit words; their layout is in player.py.
//
// Inputs change while the clock is low; what is read is what the next rising edge sees.

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <memory>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#include "Vplayed.h"
#include "verilated.h"
#if VM_COVERAGE
#include "verilated_cov.h"
#endif

using Word = uint32_t;

namespace {

// A mutant may be a loop that never settles, or may never end.
struct Stopped {};

enum Step : Word {
    kWeights,
    kActivations,
    kOffer,
    kFlush,
    kExpect,
    kClear,
    kReset,
    kWait,
    kSent,
    kStatus,
    kRead,
    kWrite,
};
enum Pattern : Word { kNone, kRandom, kBursts, kAlternating, kTrickle };
enum Ending : Word { kPlayed, kLockedUp, kUnstable, kEndless, kNotSettled };

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

std::vector<Word> read_words(const char* path) {
    std::FILE* file = std::fopen(path, "rb");
    if (file == nullptr) std::exit(2);
    std::fseek(file, 0, SEEK_END);
    std::vector<Word> words(static_cast<size_t>(std::ftell(file)) / sizeof(Word));
    std::rewind(file);
    if (std::fread(words.data(), sizeof(Word), words.size(), file) != words.size()) std::exit(2);
    std::fclose(file);
    return words;
}

// Decides in which cycles a port pauses.
class Pauses {
  public:
    Pauses(Word pattern, Word seed) : pattern_(pattern), random_(seed) {}
    bool now() {
        switch (pattern_) {
            case kRandom:
                return random_() & 1;
            case kBursts:
                if (left_ == 0) {
                    paused_ = !paused_;
                    left_ = 1 + random_() % 40;
                }
                --left_;
                return paused_;
            case kAlternating:
                paused_ = !paused_;
                return paused_;
            case kTrickle:
                left_ = left_ == 0 ? 63 : left_ - 1;
                return left_ != 0;
            default:
                return false;
        }
    }

  private:
    Word pattern_;
    std::mt19937 random_;
    Word left_ = 0;
    bool paused_ = true;
};

struct Packet {
    const Word* beats;  // each `last`, then the data
    Word count;
};

// Offers queued packets beat by beat.
struct Source {
    Word words;  // of data in a beat
    Pauses pauses;
    std::deque<Packet> queue{};
    Packet packet{nullptr, 0};
    Word sent = 0;
    bool offered = false;

    bool idle() const { return queue.empty() && packet.count == 0; }
    const Word* beat() const { return packet.beats + size_t{sent} * (words + 1); }
    void decide() {
        if (offered) return;
        if (packet.count == 0 && !queue.empty()) {
            packet = queue.front();
            queue.pop_front();
            sent = 0;
        }
        offered = packet.count != 0 && !pauses.now();
    }
    void taken() {
        offered = false;
        if (++sent == packet.count) packet.count = 0;
    }
    void drop() {
        packet.count = 0;
        offered = false;
    }
};

struct Job {
    Word seed, timeout, pattern, weight_words, activation_words, limit;
    std::vector<Word> registers;
    const Word* steps;
    Word step_count;
};

class Run {
  public:
    Run(const Job& job, Word mutant)
        : job_(job),
          weights_{job.weight_words, Pauses(job.pattern, job.seed * 16)},
          activations_{job.activation_words, Pauses(job.pattern, job.seed * 16 + 1)},
          result_pauses_(job.pattern, job.seed * 16 + 2) {
        for (Word port = 0; port < 5; ++port) {
            axi_pauses_.emplace_back(job.pattern, job.seed * 16 + 3 + port);
        }
        const std::string choice = "+mutant=" + std::to_string(mutant);
        const char* arguments[] = {"played", choice.c_str()};
        context_.commandArgs(2, arguments);
        context_.randSeed(static_cast<int>(job.seed));
        context_.randReset(2);
        top_ = std::make_unique<Vplayed>(&context_);
        // Inputs begin with random values too.
        top_->s_axil_awvalid = top_->s_axil_wvalid = top_->s_axil_bready = 0;
        top_->s_axil_arvalid = top_->s_axil_rready = 0;
#if MUTANTS
        top_->mutant = mutant;
#endif
    }

    void play() {
        Word ending = kPlayed;
        try {
            if (!steps()) {
                ending = kLockedUp;
                status();
            }
        } catch (const Word& why) {
            ending = why;
        } catch (const Stopped&) {
            ending = kNotSettled;
        }
        if (unstable_ && ending != kNotSettled) ending = kUnstable;
        ending_ = ending;
    }

    void write_log(std::vector<Word>& log) const {
        log.push_back(ending_);
        log.push_back(cycle_);
        log.push_back(static_cast<Word>(frames_.size()));
        for (const Frame& frame : frames_) {
            log.push_back(frame.error);
            log.push_back(static_cast<Word>(frame.values.size()));
            log.insert(log.end(), frame.values.begin(), frame.values.end());
        }
        for (const auto* list : {&statuses_, &matrices_, &reads_}) {
            log.push_back(static_cast<Word>(list->size()));
            log.insert(log.end(), list->begin(), list->end());
        }
    }

    VerilatedContext& context() { return context_; }
    void finish() { top_->final(); }

  private:
    struct Frame {
        bool error = false;
        std::vector<Word> values;
    };

    void tick() {
        Vplayed& top = *top_;
        if (++cycle_ > job_.limit) throw Word{kEndless};
        const bool running = top.aresetn;
        if (running) {
            weights_.decide();
            activations_.decide();
        }
        top.s_axis_weight_tvalid = weights_.offered;
        if (weights_.offered) {
            top.s_axis_weight_tlast = weights_.beat()[0];
            set(top.s_axis_weight_tdata, weights_.beat() + 1);
        }
        top.s_axis_act_tvalid = activations_.offered;
        if (activations_.offered) {
            top.s_axis_act_tlast = activations_.beat()[0];
            set(top.s_axis_act_tdata, activations_.beat() + 1);
        }
        top.m_axis_out_tready = running && !result_pauses_.now();
        top.aclk = 0;
        top.eval();
        if (weights_.offered && top.s_axis_weight_tready) weights_.taken();
        if (activations_.offered && top.s_axis_act_tready) activations_.taken();
        watch_results(running);
        if (top.matrix_done && !matrix_done_) matrices_.push_back(cycle_);
        matrix_done_ = top.matrix_done;
        aw_taken_ = top.s_axil_awvalid && top.s_axil_awready;
        w_taken_ = top.s_axil_wvalid && top.s_axil_wready;
        b_taken_ = top.s_axil_bvalid && top.s_axil_bready;
        ar_taken_ = top.s_axil_arvalid && top.s_axil_arready;
        r_taken_ = top.s_axil_rvalid && top.s_axil_rready;
        answer_ = top.s_axil_rdata;
        response_ = b_taken_ ? top.s_axil_bresp : top.s_axil_rresp;
        top.aclk = 1;
        top.eval();
    }

    void watch_results(bool running) {
        Vplayed& top = *top_;
        const bool offered = top.m_axis_out_tvalid;
        const Word data = top.m_axis_out_tdata;
        const Word marks = top.m_axis_out_tlast | top.m_axis_out_tuser << 1;
        // What is offered stays until it is taken.
        if (running && waiting_ && (!offered || data != data_ || marks != marks_)) unstable_ = true;
        waiting_ = running && offered && !top.m_axis_out_tready;
        data_ = data;
        marks_ = marks;
        if (!running || !offered || !top.m_axis_out_tready) return;
        open_.values.push_back(data);
        open_.error = open_.error || (marks & 2);
        if (marks & 1) {
            frames_.push_back(open_);
            open_ = Frame{};
        }
    }

    void ticks(Word count) {
        for (; count > 0; --count) tick();
    }

    void reset() {
        top_->aresetn = 0;
        weights_.drop();
        activations_.drop();
        open_ = Frame{};
        ticks(4);
        top_->aresetn = 1;
        ticks(2);
    }

    // Goes on until a channel of the registers has done its part; false when it never does.
    bool write(Word address, Word value) {
        Vplayed& top = *top_;
        bool address_sent = false, data_sent = false;
        top.s_axil_awaddr = address;
        top.s_axil_wdata = value;
        top.s_axil_wstrb = 0xF;
        for (Word left = job_.timeout; left > 0; --left) {
            if (!address_sent && !top.s_axil_awvalid) top.s_axil_awvalid = !axi_pauses_[0].now();
            if (!data_sent && !top.s_axil_wvalid) top.s_axil_wvalid = !axi_pauses_[1].now();
            top.s_axil_bready = !axi_pauses_[2].now();
            tick();
            if (aw_taken_) {
                address_sent = true;
                top.s_axil_awvalid = 0;
            }
            if (w_taken_) {
                data_sent = true;
                top.s_axil_wvalid = 0;
            }
            if (b_taken_) {
                top.s_axil_bready = 0;
                return address_sent && data_sent;
            }
        }
        return false;
    }

    bool read(Word address, Word& value) {
        Vplayed& top = *top_;
        bool address_sent = false;
        top.s_axil_araddr = address;
        for (Word left = job_.timeout; left > 0; --left) {
            if (!address_sent && !top.s_axil_arvalid) top.s_axil_arvalid = !axi_pauses_[3].now();
            top.s_axil_rready = !axi_pauses_[4].now();
            tick();
            if (ar_taken_) {
                address_sent = true;
                top.s_axil_arvalid = 0;
            }
            if (r_taken_) {
                top.s_axil_rready = 0;
                value = answer_;
                return address_sent;
            }
        }
        return false;
    }

    bool status() {
        bool alive = true;
        for (const Word address : job_.registers) {
            Word value = 0;
            alive = alive && read(address, value);
            statuses_.push_back(value);
        }
        statuses_.push_back(top_->irq);
        statuses_.push_back(cycle_);
        return alive;
    }

    bool expect(Word count) {
        size_t seen = frames_.size();
        for (Word waited = 0; frames_.size() < count; ++waited) {
            if (waited >= job_.timeout) return false;
            tick();
            if (frames_.size() > seen) waited = 0;
            seen = frames_.size();
        }
        return true;
    }

    bool sent() {
        size_t left = weights_.queue.size();
        for (Word waited = 0; !weights_.idle(); ++waited) {
            if (waited >= job_.timeout) return false;
            tick();
            if (weights_.queue.size() < left) waited = 0;
            left = weights_.queue.size();
        }
        return true;
    }

    bool steps() {
        reset();
        const Word* at = job_.steps;
        for (Word left = job_.step_count; left > 0; --left) {
            const Word kind = *at++, count = *at++, beats = *at++;
            const Packet packet{at, beats};
            bool alive = true;
            switch (kind) {
                case kWeights:
                    weights_.queue.push_back(packet);
                    at += size_t{beats} * (job_.weight_words + 1);
                    break;
                case kOffer:
                case kActivations:
                    if (kind == kActivations || activations_.idle()) {
                        activations_.queue.push_back(packet);
                    }
                    at += size_t{beats} * (job_.activation_words + 1);
                    break;
                case kFlush:
                    weights_.queue.clear();
                    activations_.queue.clear();
                    break;
                case kExpect:
                    alive = expect(count);
                    break;
                case kClear:
                    alive = write(count, beats);
                    break;
                case kWrite:
                    alive = write(count, beats);
                    reads_.push_back(response_);
                    break;
                case kRead: {
                    Word value = 0;
                    alive = read(count, value);
                    reads_.push_back(value);
                    reads_.push_back(response_);
                    break;
                }
                case kReset:
                    reset();
                    break;
                case kWait:
                    ticks(count);
                    break;
                case kSent:
                    alive = sent();
                    break;
                case kStatus:
                    alive = status();
                    break;
                default:
                    std::exit(2);
            }
            if (!alive) return false;
        }
        return true;
    }

    const Job& job_;
    VerilatedContext context_;
    std::unique_ptr<Vplayed> top_;
    Source weights_, activations_;
    Pauses result_pauses_;
    std::vector<Pauses> axi_pauses_;
    Word cycle_ = 0, ending_ = kPlayed;
    bool matrix_done_ = false, waiting_ = false, unstable_ = false;
    Word data_ = 0, marks_ = 0, answer_ = 0, response_ = 0;
    bool aw_taken_ = false, w_taken_ = false, b_taken_ = false, ar_taken_ = false;
    bool r_taken_ = false;
    Frame open_;
    std::vector<Frame> frames_;
    std::vector<Word> statuses_, matrices_, reads_;
};

}  // namespace

// Verilator calls this where a loop does not settle, with VL_USER_FATAL.
void vl_fatal(const char*, int, const char*, const char*) { throw Stopped{}; }

int main(int argc, char** argv) {
    if (argc < 4) return 2;
    const std::vector<Word> words = read_words(argv[1]);
    const Word* at = words.data();
    Job job{};
    for (Word* field : {&job.seed, &job.timeout, &job.pattern, &job.weight_words,
                        &job.activation_words, &job.limit}) {
        *field = *at++;
    }
    const Word registers = *at++;
    job.registers.assign(at, at + registers);
    at += registers;
    job.step_count = *at++;
    job.steps = at;
    std::vector<Word> log;
    for (int argument = 3; argument < argc; ++argument) {
        Run run(job, static_cast<Word>(std::atoi(argv[argument])));
        run.play();
        run.write_log(log);
#if VM_COVERAGE
        run.finish();
        run.context().coveragep()->write((std::string(argv[2]) + ".coverage").c_str());
#endif
    }
    std::FILE* file = std::fopen(argv[2], "wb");
    if (file == nullptr) return 2;
    const bool whole = std::fwrite(log.data(), sizeof(Word), log.size(), file) == log.size();
    return std::fclose(file) == 0 && whole ? 0 : 2;
}
