// Streams text within a deadline: make && build/client [HOST:PORT] [DEADLINE_S] [PROMPT]
#include <google/rpc/error_details.pb.h>
#include <google/rpc/status.pb.h>
#include <grpcpp/grpcpp.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <string>

#include "headway/v1/text.grpc.pb.h"

namespace {

void Show(const headway::v1::GenerateResponse& message) {
  if (message.has_plan()) {
    const auto& plan = message.plan();
    std::printf("plan: rung %s, %.0f of %.0f ms\n", plan.rung().label().c_str(), plan.predicted_p50_ms(), plan.budget_ms());
  } else if (message.has_chunk()) {
    std::printf("%s", message.chunk().text().c_str());
  } else if (message.has_summary()) {
    const auto& served = message.summary().served();
    std::printf("\nserved: rung %s, quality %.2f, slack %.0f ms\n", served.rung().label().c_str(), served.quality(),
                served.slack_ms());
  }
  std::fflush(stdout);
}

// Why, and what to do about it. An error of another hop may carry no details.
std::string Refusal(const grpc::Status& status) {
  std::string reason, advice;
  google::rpc::Status details;
  if (details.ParseFromString(status.error_details())) {
    for (const auto& detail : details.details()) {
      google::rpc::ErrorInfo info;
      google::rpc::RetryInfo retry;
      if (detail.UnpackTo(&info)) {
        reason = info.reason();
        const auto least = info.metadata().find("least_budget_ms");
        if (least != info.metadata().end()) advice = "; give it at least " + least->second + " ms";
      } else if (detail.UnpackTo(&retry)) {
        const auto& delay = retry.retry_delay();
        advice = "; come back in " + std::to_string(delay.seconds() * 1000 + delay.nanos() / 1000000) + " ms";
      }
    }
  }
  return "refused: " + std::to_string(status.error_code()) + " " + reason + ": " + status.error_message() + advice;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string address = argc > 1 ? argv[1] : "127.0.0.1:50050";
  const double deadline_s = argc > 2 ? std::atof(argv[2]) : 5.0;
  headway::v1::GenerateRequest request;
  request.set_text(argc > 3 ? argv[3] : "The iterator protocol");
  request.set_max_tokens(24);

  const auto stub = headway::v1::TextGeneration::NewStub(grpc::CreateChannel(address, grpc::InsecureChannelCredentials()));
  grpc::ClientContext context;
  // The deadline is the budget: gRPC carries it, and every hop passes on what is left.
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::microseconds(static_cast<long>(deadline_s * 1e6)));
  const auto reader = stub->Generate(&context, request);
  headway::v1::GenerateResponse message;
  while (reader->Read(&message)) Show(message);
  const grpc::Status status = reader->Finish();
  if (status.ok()) return 0;
  std::cerr << Refusal(status) << "\n";
  return 1;
}
