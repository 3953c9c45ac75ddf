import com.openai.client.OpenAIClient;
import com.openai.client.okhttp.OpenAIOkHttpClient;
import com.openai.errors.NotFoundException;
import com.openai.models.audio.transcriptions.TranscriptionCreateParams;
import com.openai.models.chat.completions.ChatCompletionCreateParams;
import com.openai.models.embeddings.EmbeddingCreateParams;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.stream.Collectors;

/** OpenAI's SDK for Java, as its documentation has it. */
public class Main {
    static ChatCompletionCreateParams hello(String model) {
        return ChatCompletionCreateParams.builder().model(model).addUserMessage("hello").build();
    }

    static void want(String operation, boolean right, Object seen) {
        if (!right) {
            throw new IllegalStateException(operation + ": " + seen);
        }
        System.out.println(operation + " ok");
    }

    public static void main(String[] arguments) throws Exception {
        OpenAIClient client = OpenAIOkHttpClient.builder()
                .apiKey(System.getenv("GATEWAY_KEY"))
                .baseUrl(System.getenv("GATEWAY_URL") + "/v1")
                .maxRetries(0)
                .build();

        String text = client.chat().completions().create(hello("gpt-4o")).choices().get(0).message().content().get();
        want("chat", text.contains("You said: hello"), text);

        try (var chunks = client.chat().completions().createStreaming(hello("gpt-4o"))) {
            text = chunks.stream()
                    .flatMap(chunk -> chunk.choices().stream())
                    .flatMap(choice -> choice.delta().content().stream())
                    .collect(Collectors.joining());
        }
        want("stream", text.contains("You said: hello"), text);

        var vector = client.embeddings()
                .create(EmbeddingCreateParams.builder().model("text-embedding-3-small").input("hello").build())
                .data().get(0).embedding();
        want("embeddings", vector.size() == 1536, vector.size());

        var models = client.models().list().data();
        want("models", models.stream().anyMatch(model -> model.id().equals("gpt-4o")), models);

        // It sends a file without telling its length.
        Path file = Files.createTempFile("client", ".wav");
        try {
            Files.write(file, new byte[200_000]);
            text = client.audio().transcriptions()
                    .create(TranscriptionCreateParams.builder().model("gpt-4o").file(file).build())
                    .asTranscription().text();
            want("unknown-length", text.contains("200000 bytes"), text);
        } finally {
            Files.delete(file);
        }

        try {
            client.chat().completions().create(hello("gpt4o"));
        } catch (NotFoundException error) {
            want("unknown-model", error.getMessage().contains("gpt-4o"), error.getMessage());
        }
        System.exit(0); // its connections would keep the program
    }
}
