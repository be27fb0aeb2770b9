// Streams text within a deadline: npm install && node client.js [HOST:PORT] [DEADLINE_S] [PROMPT]
"use strict";

const path = require("node:path");
const grpc = require("@grpc/grpc-js");
const protoLoader = require("@grpc/proto-loader");
const protobuf = require("protobufjs");

const PROTOS = process.env.HEADWAY_PROTOS ?? path.join(__dirname, "..", "..", "protos");
const DETAILS = protobuf.parse(`
  syntax = "proto3"; package google.rpc;
  message Any { string type_url = 1; bytes value = 2; }
  message Status { int32 code = 1; string message = 2; repeated Any details = 3; }
  message ErrorInfo { string reason = 1; string domain = 2; map<string, string> metadata = 3; }
`, { keepCase: true }).root;

function textGeneration(address) {
  const loaded = protoLoader.loadSync("headway/v1/text.proto", {
    includeDirs: [PROTOS], keepCase: true, longs: Number, enums: String, defaults: true, oneofs: true,
  });
  const { TextGeneration } = grpc.loadPackageDefinition(loaded).headway.v1;
  return new TextGeneration(address, grpc.credentials.createInsecure());
}

function show(message) {
  if (message.part === "plan") {
    const { rung, predicted_p50_ms: predicted, budget_ms: budget } = message.plan;
    console.log(`plan: rung ${rung.label}, ${predicted.toFixed(0)} of ${budget.toFixed(0)} ms`);
  } else if (message.part === "chunk") {
    process.stdout.write(message.chunk.text);
  } else if (message.part === "summary") {
    const { rung, quality, slack_ms: slack } = message.summary.served;
    console.log(`\nserved: rung ${rung.label}, quality ${quality.toFixed(2)}, slack ${slack.toFixed(0)} ms`);
  }
}

// Why, and what to do about it: the reason of the contract, and either the least budget or when to come back.
function refusal(error) {
  const [raw] = error.metadata?.get("grpc-status-details-bin") ?? [];
  const details = raw ? DETAILS.lookupType("google.rpc.Status").decode(raw).details : [];
  const found = details.find((detail) => detail.type_url.endsWith("/google.rpc.ErrorInfo"));
  const info = found ? DETAILS.lookupType("google.rpc.ErrorInfo").decode(found.value) : { reason: "", metadata: {} };
  const [pushback] = error.metadata?.get("grpc-retry-pushback-ms") ?? [];
  let advice = pushback && Number(pushback) >= 0 ? `; come back in ${pushback} ms` : "";
  if (info.metadata.least_budget_ms) advice = `; give it at least ${info.metadata.least_budget_ms} ms`;
  return `refused: ${grpc.status[error.code]} ${info.reason}: ${error.details}${advice}`;
}

const [address = "127.0.0.1:50050", deadlineS = "5", prompt = "The iterator protocol"] = process.argv.slice(2);
const client = textGeneration(address);
// The deadline is the budget: gRPC carries it, and every hop passes on what is left.
const deadline = Date.now() + Number(deadlineS) * 1000;
const call = client.Generate({ text: prompt, max_tokens: 24 }, { deadline });
call.on("data", show);
call.on("error", (error) => {
  console.error(refusal(error));
  process.exitCode = 1;
});
call.on("status", () => client.close());
