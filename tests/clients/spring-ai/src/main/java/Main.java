import java.util.stream.Collectors;
import org.springframework.ai.chat.prompt.Prompt;
import org.springframework.ai.document.MetadataMode;
import org.springframework.ai.openai.OpenAiChatModel;
import org.springframework.ai.openai.OpenAiChatOptions;
import org.springframework.ai.openai.OpenAiEmbeddingModel;
import org.springframework.ai.openai.OpenAiEmbeddingOptions;
import org.springframework.ai.openai.api.OpenAiApi;
import org.springframework.ai.retry.NonTransientAiException;
import org.springframework.ai.retry.RetryUtils;

/** Spring AI with its models for OpenAI. It sends plain requests without telling their length. */
public class Main {
    static void want(String operation, boolean right, Object seen) {
        if (!right) {
            throw new IllegalStateException(operation + ": " + seen);
        }
        System.out.println(operation + " ok");
    }

    public static void main(String[] arguments) {
        OpenAiApi gateway = OpenAiApi.builder()
                .apiKey(System.getenv("GATEWAY_KEY"))
                .baseUrl(System.getenv("GATEWAY_URL"))
                .build();
        OpenAiChatModel chat = OpenAiChatModel.builder()
                .openAiApi(gateway)
                .defaultOptions(OpenAiChatOptions.builder().model("gpt-4o").build())
                .build();

        String text = chat.call("hello");
        want("chat", text.contains("You said: hello"), text);

        text = chat.stream("hello").toStream().collect(Collectors.joining());
        want("stream", text.contains("You said: hello"), text);

        float[] vector = new OpenAiEmbeddingModel(
                gateway,
                MetadataMode.EMBED,
                OpenAiEmbeddingOptions.builder().model("text-embedding-3-small").build(),
                RetryUtils.SHORT_RETRY_TEMPLATE)
                .embed("hello");
        want("embeddings", vector.length == 1536, vector.length);

        try {
            chat.call(new Prompt("hello", OpenAiChatOptions.builder().model("gpt4o").build()));
        } catch (NonTransientAiException error) {
            want("unknown-model", error.getMessage().contains("gpt-4o"), error.getMessage());
        }
        System.exit(0);
    }
}
