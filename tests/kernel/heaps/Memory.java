import java.nio.ByteBuffer;
import java.util.ArrayList;
import java.util.List;

/** Fills memory in the way that its argument names, until the kernel ends it. */
public class Memory {
    static final List<byte[]> kept = new ArrayList<>();
    static final List<ByteBuffer> outside = new ArrayList<>();

    public static void main(String[] args) throws Exception {
        System.out.println("ready");
        switch (args[0]) {
            case "heap" -> fillHeap(Integer.MAX_VALUE, 50);
            case "native" -> fillNative(50);
            case "full" -> {
                fillHeap(Integer.parseInt(args[1]), 2);
                new Thread(Memory::collectInVain).start();
                fillNative(100);
            }
            default -> throw new IllegalArgumentException(args[0]);
        }
    }

    /** Keeps so many MiB, one in each pause of so many ms. */
    static void fillHeap(int mib, int pause) throws InterruptedException {
        for (int n = 0; n < 4L * mib; n++) {
            kept.add(new byte[1 << 18]);
            Thread.sleep(n % 4 == 0 ? pause : 0);
        }
    }

    /** Direct buffers are zeroed, so that they are in memory. */
    static void fillNative(int pause) throws InterruptedException {
        while (true) {
            outside.add(ByteBuffer.allocateDirect(1 << 20));
            Thread.sleep(pause);
        }
    }

    static void collectInVain() {
        while (true) {
            byte[] garbage = new byte[1 << 18];
            garbage[0] = 1;
        }
    }
}
