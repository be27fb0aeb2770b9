// Streams text within a deadline: ./generate.sh && go mod tidy && go run . [HOST:PORT] [DEADLINE_S] [PROMPT]
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	pb "headway.example/client/headway/v1"
)

func argument(index int, otherwise string) string {
	if len(os.Args) > index {
		return os.Args[index]
	}
	return otherwise
}

func run() error {
	deadlineS, err := strconv.ParseFloat(argument(2, "5"), 64)
	if err != nil {
		return err
	}
	connection, err := grpc.Dial(argument(1, "127.0.0.1:50050"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer connection.Close()
	// The deadline is the budget: gRPC carries it, and every hop passes on what is left.
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(deadlineS*float64(time.Second)))
	defer cancel()
	request := &pb.GenerateRequest{
		Prompt:    &pb.GenerateRequest_Text{Text: argument(3, "The iterator protocol")},
		MaxTokens: proto.Uint32(24),
	}
	stream, err := pb.NewTextGenerationClient(connection).Generate(ctx, request)
	if err != nil {
		return err
	}
	for {
		message, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		show(message)
	}
}

func show(message *pb.GenerateResponse) {
	switch part := message.Part.(type) {
	case *pb.GenerateResponse_Plan:
		fmt.Printf("plan: rung %s, %.0f of %.0f ms\n", part.Plan.Rung.Label, part.Plan.PredictedP50Ms, part.Plan.BudgetMs)
	case *pb.GenerateResponse_Chunk:
		fmt.Print(part.Chunk.Text)
	case *pb.GenerateResponse_Summary:
		served := part.Summary.Served
		fmt.Printf("\nserved: rung %s, quality %.2f, slack %.0f ms\n", served.Rung.Label, served.Quality, served.SlackMs)
	}
}

// Why, and what to do about it. An error of another hop may carry no details.
func refusal(err error) string {
	state := status.Convert(err)
	reason, advice := "", ""
	for _, detail := range state.Details() {
		switch known := detail.(type) {
		case *errdetails.ErrorInfo:
			reason = known.Reason
			if least, ok := known.Metadata["least_budget_ms"]; ok {
				advice = fmt.Sprintf("; give it at least %s ms", least)
			}
		case *errdetails.RetryInfo:
			advice = fmt.Sprintf("; come back in %d ms", known.RetryDelay.GetSeconds()*1000+int64(known.RetryDelay.GetNanos())/1e6)
		}
	}
	return fmt.Sprintf("refused: %s %s: %s%s", state.Code(), reason, state.Message(), advice)
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, refusal(err))
		os.Exit(1)
	}
}
